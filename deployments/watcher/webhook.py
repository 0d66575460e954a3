"""Where the store's webhook is heard, and where the watcher is asked whether it is well."""

import hmac
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.watcher.hints import Hints, from_webhook

LARGEST = 1 << 20


class Pulse:
    """When the watcher's loop last came round."""

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.last = time.monotonic()

    def beat(self) -> None:
        """It came round."""
        self.last = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it came round of late."""
        return time.monotonic() - self.last < self.longest


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
