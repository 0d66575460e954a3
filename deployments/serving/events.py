"""Server-sent events (HTML Living Standard, 9.2): an answer in parts, while it is made."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

EVENTS = "text/event-stream"
SEND_SECONDS = 30.0
"""Longest that a caller may leave what was sent unread; then what is made for it ends."""
# Neither a cache nor a proxy is to gather what comes bit by bit.
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_log = logging.getLogger("modelmint.serving")


class EventStream(StreamingResponse):
    """An answer of events; what makes them is closed when the caller leaves or stops reading."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={**headers, **_HEADERS}, media_type=EVENTS)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async def bounded(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                raise _UnreadError from None

        async with aclosing(self._events):
            try:
                await super().stream_response(bounded)
            except _UnreadError:
                _log.info("a caller reads its events no more")


class _UnreadError(Exception):
    """What was sent is not read."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event with a JSON value, which has no line breaks of its own."""
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + orjson.dumps(data) + b"\n\n"
