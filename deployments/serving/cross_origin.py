"""What pages from elsewhere may ask (CORS); a browser is refused in the server's own words."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.serving.http import on_error
from deployments.serving.protocol import HEADER_LENGTH, ProtocolError

EXPOSED = (
    "modelmint-model", "modelmint-version", "modelmint-digest", "modelmint-cache", "modelmint-seed",
    "x-request-id", "retry-after", HEADER_LENGTH,
)  # fmt: skip
OPENAI = (
    "openai-organization", "openai-project", "user-agent",
    *(f"x-stainless-{name}" for name in (
        "arch", "custom-poll-interval", "helper-method", "lang", "os", "package-version",
        "poll-helper", "retry-count", "runtime", "runtime-version", "timeout",
    )),
)  # fmt: skip
"""What OpenAI's client for JavaScript sends along, in version 6."""
ALLOWED = (
    "authorization", "content-type", "cache-control", "x-request-id", "modelmint-timeout-ms",
    "traceparent", "tracestate", HEADER_LENGTH, *OPENAI,
)  # fmt: skip


class _CrossOrigin(CORSMiddleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            return await super().__call__(scope, receive, send)
        headers = Headers(scope=scope)
        if "origin" not in headers or "access-control-request-method" not in headers:
            return await super().__call__(scope, receive, send)
        answer = self.preflight_response(headers)
        if answer.status_code != 200:
            words = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
            error = ProtocolError(400, f"not for pages from elsewhere: {words}", "cross_origin")
            refusal = await on_error(Request(scope, receive), error)
            told = {"vary", *(name for name in answer.headers if name.startswith("access-control"))}
            refusal.headers.update({name: answer.headers[name] for name in told})
            answer = refusal
        return await answer(scope, receive, send)


def cross_origin(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, usable by pages of these origins; `*` is every origin, none is none."""
    if not origins:
        return app
    return _CrossOrigin(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=ALLOWED,
        expose_headers=EXPOSED,
        max_age=600,
    )
