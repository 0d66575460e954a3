"""Where the store's webhook is heard, and where the watcher is asked whether it is well."""

import hmac
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.watcher.hints import Hints, Pulse, from_webhook

LARGEST = 1 << 20


def application(hints: Hints, pulse: Pulse, token: str) -> Starlette:
    """`POST /hints` with the bearer token, `GET /health`."""
    wanted = f"Bearer {token}".encode()

    async def hint(request: Request) -> Response:
        shown = request.headers.get("authorization", "").encode()
        if not token or not hmac.compare_digest(shown, wanted):
            return Response("show the webhook's bearer token", status_code=401)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                # However long: something changed.
                hints.tell_all()
                return Response(status_code=204)
        from_webhook(hints, body)
        return Response(status_code=204)

    async def health(_: Request) -> Response:
        return JSONResponse({"alive": pulse.alive}, status_code=200 if pulse.alive else 503)

    return Starlette(
        routes=[Route("/hints", hint, methods=["POST"]), Route("/health", health)],
    )


def listen(hints: Hints, pulse: Pulse, host: str, port: int, token: str) -> threading.Thread:
    """Serve it in a thread for as long as the process lives."""
    config = uvicorn.Config(
        application(hints, pulse, token), host=host, port=port, log_level="warning"
    )
    thread = threading.Thread(target=uvicorn.Server(config).run, daemon=True)
    thread.start()
    return thread
