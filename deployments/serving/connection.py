"""A connection that may answer a small `infer` request by itself, and else is uvicorn's own.

A task, ASGI's messages, middleware and routing cost a small network more than its row. So a request
waits here until it has come whole, for a moment, and `direct` takes what it can answer at once; all
else, and whatever is unusual about a request, goes to the application as if it had just come.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deployments.serving.direct import STATE, Direct
from deployments.serving.http import INLINE_BYTES

HELD_SECONDS = 0.05
"""Until the rest of a request is waited for by the application, which has deadlines for that."""


class Connection(HttpToolsProtocol):
    """What uvicorn is told to speak HTTP with."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._direct: Direct | None = self.app_state.get(STATE)
        self._reading = False
        self._held: RequestResponseCycle | None = None
        self._letting_go: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self._reading = True
        super().data_received(data)
        self._reading = False
        if self._held is not None and self._letting_go is None:
            self._letting_go = self.loop.call_later(HELD_SECONDS, self._let_go)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._held is not None and len(self._held.body) > INLINE_BYTES:
            self._let_go()  # uvicorn reads no more of it until somebody asks for the body

    def on_message_complete(self) -> None:
        super().on_message_complete()
        held = self._free()
        if held is not None:
            assert self._direct is not None
            if not self._direct.take(self, held):
                self.give_up(held)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        super().connection_lost(exc)

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
        """Write a whole response."""
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join(parts))
        cycle.on_response()

    def give_up(self, cycle: RequestResponseCycle) -> None:
        """Let the application answer."""
        super()._start_asgi_task(cycle, self.app)

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
