"""Server-sent events (HTML Living Standard, 9.2): an answer in parts, while it is made."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Send

EVENTS = "text/event-stream"
# Neither a cache nor a proxy is to gather what comes bit by bit.
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """An answer of events; what makes them is closed when the caller leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={**headers, **_HEADERS}, media_type=EVENTS)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


def event(data: Any, name: str | None = None) -> bytes:
    """One event with a JSON value, which has no line breaks of its own."""
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + orjson.dumps(data) + b"\n\n"
