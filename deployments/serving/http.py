"""What every route shares: checked parameters, request ids, answers and errors."""

import asyncio
import importlib.metadata
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.serving import metrics
from deployments.serving.openai_protocol import refusal, speaks_openai
from deployments.serving.protocol import JSON, ProtocolError

TIMEOUT = "modelmint-timeout-ms"
NO_STORE = b"no-store"
DUE = "modelmint.due"
"""Where a request's scope says when its answer is due, where that was settled before."""
UNREAD = "modelmint.unread"
"""In a request's scope while there may be something left of its body."""
INLINE_BYTES = 65_536
"""Largest request parsed on the event loop: about a millisecond of JSON."""
LONGEST_TEXT = 256
LONGEST_WORDS = 1000
"""Characters of a name, number or digest in a control request, and of what is told or a place."""
_WORDS = frozenset(("reason", "source"))
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_CODES = {404: "not_found", 405: "method_not_allowed"}
_log = logging.getLogger("modelmint.serving")


class Address(NamedTuple):
    """Where to listen; with files of a certificate chain and its private key, over TLS."""

    host: str
    port: int
    certificate: str | None = None
    private_key: str | None = None


def header(request: Request, name: bytes) -> str | None:
    """A header's value by its lower-case name: a search of the list each time would add up."""
    fields: dict[bytes, bytes] | None = request.scope.get("modelmint.headers")
    if fields is None:
        fields = request.scope["modelmint.headers"] = dict(request.scope["headers"])
    value = fields.get(name)
    return None if value is None else value.decode("latin-1")


def may_store(request: Request) -> bool:
    """Whether the caller lets anything of the request be kept: no `cache-control: no-store`."""
    # All of them: a proxy may add its own after the caller's.
    return not any(
        name == b"cache-control" and NO_STORE in value.lower()
        for name, value in request.scope["headers"]
    )


def request_id(request: Request) -> str:
    """The caller's `x-request-id` when it is well-formed, else a new one, the same all along."""
    found = getattr(request.state, "request_id", None)
    if found is None:
        found = request.state.request_id = identity(header(request, b"x-request-id"))
    return str(found)


def identity(given: str | None, inside: str | None = None) -> str:
    """The first well-formed id of those a caller gave, by header and inside; else a new one."""
    if given and REQUEST_ID.fullmatch(given):
        return given
    return inside if inside and REQUEST_ID.fullmatch(inside) else os.urandom(16).hex()


def take_id(request: Request, inside: str | None) -> bool:
    """Let a well-formed id inside of a request name it where no header does; whether it does."""
    if not inside or not REQUEST_ID.fullmatch(inside):
        return False
    request.state.request_id = identity(header(request, b"x-request-id"), inside)
    return bool(request.state.request_id == inside)


def identified(app: ASGIApp) -> ASGIApp:
    """The application, whose every answer tells its request's id."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = b"x-request-id", request_id(Request(scope)).encode()
                message["headers"] = [*message.get("headers", ()), told]
            await send(message)

        await app(scope, receive, named if scope["type"] == "http" else send)

    return answered


def media_type(request: Request) -> str:
    """The content type without parameters, lower case; JSON when none is given."""
    return (header(request, b"content-type") or JSON).partition(";")[0].strip().lower()


Body = Callable[[Request], Awaitable[bytes]]
"""Reads a request's whole body within a server's limits; raises ProtocolError."""


def deadline(request: Request, seconds: float) -> float:
    """When the answer is due, in the loop's time: by header, else in `seconds`, counted from now.

    Raises ProtocolError 400 for a header that is no number of milliseconds up to ten minutes.
    """
    text = header(request, TIMEOUT.encode())
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) < 7 and 0 < int(text) <= 600_000):
            raise ProtocolError(400, f"{TIMEOUT} must be 1 to 600000 milliseconds")
        seconds = min(seconds, int(text) / 1000)
    due: float | None = request.scope.get(DUE)
    return due if due is not None else asyncio.get_running_loop().time() + seconds


def hurried(request: Request) -> bool:
    """Whether the caller named the deadline."""
    return header(request, TIMEOUT.encode()) is not None


def as_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, empty for an empty one; raises ProtocolError 400."""
    try:
        found = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise ProtocolError(400, f"the request is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ProtocolError(400, "the request must be a JSON object")
    return found


def parameters(body: bytes) -> dict[str, Any]:
    """The `parameters` object of a JSON body; raises ProtocolError 400."""
    found = as_object(body).get("parameters", {})
    if not isinstance(found, dict):
        raise ProtocolError(400, "parameters must be a JSON object")
    return found


def texts(
    given: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, str]:
    """The named members, all of them strings and no others; raises ProtocolError 400.

    They are bounded, since what is asked goes into the audit log before it is done.
    """
    if missing := [name for name in required if name not in given]:
        raise ProtocolError(400, f"missing {', '.join(missing)}")
    if unknown := sorted(set(given) - {*required, *optional}):
        raise ProtocolError(400, f"unknown {', '.join(unknown)[:200]}")
    if wrong := [name for name, value in given.items() if not isinstance(value, str)]:
        raise ProtocolError(400, f"{', '.join(wrong)} must be a string")
    for name, value in given.items():
        longest = LONGEST_WORDS if name in _WORDS else LONGEST_TEXT
        if len(value) > longest:
            raise ProtocolError(400, f"{name} has more than {longest:,} characters")
    return dict(given)


def as_json(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, headers, JSON)


def release() -> str:
    """The version of this server's own code."""
    try:
        return importlib.metadata.version("modelmint")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


async def on_error(request: Request, error: Exception) -> Response:
    """The answer to any error: a status, a stable code, a message, and nothing of our inside."""
    named = request_id(request)
    # Which version was meant to answer, when that was known by then.
    headers: dict[str, str] = {**getattr(request.state, "headers", {})}
    if isinstance(error, ProtocolError):
        status, code, message = error.status, error.code, error.message
        if status == 401:
            headers["www-authenticate"] = 'Bearer realm="modelmint"'  # RFC 6750
        if error.retry_seconds is not None:
            headers["retry-after"] = error.retry_seconds
    elif isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        code = _CODES.get(status, "http_error")
        headers |= dict(error.headers or {})
    else:
        # Starlette raises it again once answered, and uvicorn logs the traceback after this line.
        _log.error("request %s failed: %s", named, type(error).__name__)
        status, code, message = 500, "internal", "internal error: see the server's log"
    metrics.refused(status, code)
    if status == 401 or UNREAD in request.scope:
        headers["connection"] = "close"  # what is left of the body is never read
    answer: dict[str, Any] = {"error": message, "code": code, "request_id": named}
    if speaks_openai(request.scope["path"]):
        answer = refusal(status, code, message)
    return as_json(answer, status=status, headers=headers)
