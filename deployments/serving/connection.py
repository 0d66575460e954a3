"""A connection that may answer a small `infer` request by itself, and else is uvicorn's own.

A task, ASGI's messages, middleware and routing cost a small network more than its row. So a request
waits here until it has come whole, for a moment, and `direct` takes what it can answer at once; all
else, and whatever is unusual about a request, goes to the application as if it had just come.

What the application never sees is bounded and refused here, in its words: headers that do not come,
or do not end, and what is no HTTP.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from deployments.serving import metrics
from deployments.serving.direct import STATE, Direct
from deployments.serving.http import INLINE_BYTES, identity
from deployments.serving.protocol import JSON, ProtocolError

HELD_SECONDS = 0.05
"""Until the rest of a request is waited for by the application, which has deadlines for that."""
HEAD_SECONDS = 10.0
"""Until the headers of a request must have come, from its first byte or that of the connection."""
LARGEST_HEAD = 65_536
"""Bytes of a request line and headers that come in parts; uvicorn would keep any number."""
FRAMING = 8
"""Bytes that may frame a byte of a body: a chunk of one has five around it. More than that, and
`LARGEST_HEAD` for the trailers, are a flood of padded sizes, extensions or trailers."""


class Connection(HttpToolsProtocol):
    """What uvicorn is told to speak HTTP with."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._direct: Direct | None = self.app_state.get(STATE)
        self._reading = False
        self._held: RequestResponseCycle | None = None
        self._letting_go: asyncio.TimerHandle | None = None
        self._awaited: float | None = None
        """Since when headers are waited for that have not come whole, in the loop's time."""
        self._head_size = 0
        self._framing: int | None = None
        """Bytes that came and are neither body nor needed to frame it; None while none is due."""
        self._looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._reading, before = True, self.scope
        super().data_received(data)
        self._reading = False
        if self.timeout_keep_alive_task is None and self._between():
            self._come(len(data), self.scope is not before)
        elif self._awaited is not None:
            self._awaited = None
        if self._framing is not None and self.scope is before:
            self._framing += len(data)
            if self._framing > LARGEST_HEAD:
                self._free()
                message = f"chunk sizes and trailers are over {LARGEST_HEAD:,} bytes"
                self._refuse(ProtocolError(413, message, "too_large"))
        if self._held is not None and self._letting_go is None:
            self._letting_go = self.loop.call_later(HELD_SECONDS, self._let_go)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # Trailers are dropped: they may change nothing of what was asked.
        self.headers, self._framing = [], 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._framing is not None:
            self._framing -= FRAMING * len(body)
        if self._held is not None and len(self._held.body) > INLINE_BYTES:
            self._let_go()  # uvicorn reads no more of it until somebody asks for the body

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._framing = None
        held = self._free()
        if held is not None:
            assert self._direct is not None
            if not self._direct.take(self, held):
                self.give_up(held)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._let_go()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser cannot read; its own words say less."""
        del msg
        self._free()
        self._refuse(ProtocolError(400, "the request is no HTTP/1.1", "invalid_http"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Not a pipelined request whose turn has come: it may have been read to its end before.
        if self._direct is None or not self._reading or cycle.waiting_for_100_continue:
            super()._start_asgi_task(cycle, app)
        else:
            self._held = cycle

    def ready(self, cycle: RequestResponseCycle) -> bool:
        """Whether an answer may be written now, and the connection stays open after it."""
        return cycle.keep_alive and not cycle.disconnected and not self.flow.write_paused

    def answer(self, cycle: RequestResponseCycle, *parts: bytes) -> None:
        """Write a whole response, and close where the server ends or what follows is no HTTP."""
        cycle.response_started = cycle.response_complete = True
        if not cycle.disconnected:
            self.transport.write(b"".join(parts))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def give_up(self, cycle: RequestResponseCycle) -> None:
        """Let the application answer."""
        super()._start_asgi_task(cycle, self.app)

    def _between(self) -> bool:
        """Whether what came last is before the end of a request's headers, or behind an answer."""
        return self._heading() or self.cycle is None or self.cycle.response_complete

    def _heading(self) -> bool:
        """Whether some of a request's headers have come, and not all."""
        return self.scope is not None and "method" not in self.scope

    def _come(self, size: int, begun: bool) -> None:
        """Bytes that end no headers came; `begun`: some of them belong to what was before."""
        if begun:
            self._awaited, self._head_size = None, 0
        elif self._heading():
            self._head_size += size
            if self._head_size > LARGEST_HEAD:
                message = f"request line and headers are over {LARGEST_HEAD:,} bytes"
                self._refuse(ProtocolError(431, message, "too_large"))
        if self._awaited is None:
            self._await_head()

    def _await_head(self) -> None:
        self._awaited = self.loop.time()
        # One timer for all requests: mostly they come whole, and it finds nothing to do.
        if self._looking is None:
            self._looking = self.loop.call_later(HEAD_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._awaited is None:
            return
        left = self._awaited + HEAD_SECONDS - self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            # The next request is begun, and not read on before this one is answered.
            self._awaited, left = self.loop.time(), HEAD_SECONDS
        if left > 0:
            self._looking = self.loop.call_later(left, self._look)
        elif self._heading():
            self._refuse(ProtocolError(408, "the headers did not come in time", "timeout"))
        else:  # nothing was asked
            self.transport.close()

    def _refuse(self, error: ProtocolError) -> None:
        """Answer as the application would, and close."""
        if self.transport.is_closing():
            return
        if self._framing is not None and self.cycle.response_complete:
            self.transport.close()  # it was answered before its body had come
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:  # what came before was right, and is answered first
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            if self.cycle.response_started:
                self.transport.close()  # it would be read as part of that response
                return
        fields = dict(self.scope["headers"]) if self.scope else {}
        named = identity(str(fields.get(b"x-request-id", b""), "latin-1"))
        told = {"error": error.message, "code": error.code, "request_id": named}
        content = orjson.dumps(told)
        lines = [b"%b: %b\r\n" % one for one in self.server_state.default_headers]
        head = (
            f"content-type: {JSON}\r\ncontent-length: {len(content)}\r\n"
            f"x-request-id: {named}\r\nconnection: close\r\n\r\n"
        )
        metrics.refused(error.status, error.code)
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, head.encode(), content]))
        self.transport.close()

    def _free(self) -> RequestResponseCycle | None:
        held, self._held = self._held, None
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        return held

    def _let_go(self) -> None:
        held = self._free()
        if held is not None:
            self.give_up(held)
