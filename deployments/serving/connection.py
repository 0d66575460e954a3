"""A connection that may answer a small `infer` request by itself, and else is uvicorn's own.

A task, ASGI's messages, middleware and routing cost a small network more than its row. So a request
that came whole in one read waits here for `direct`, which takes what it can answer at once; all
else, and whatever is unusual about a request, goes to the application as if it had just come.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deployments.serving.direct import STATE, Direct


class Connection(HttpToolsProtocol):
    """What uvicorn is told to speak HTTP with."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._direct: Direct | None = self.app_state.get(STATE)
        self._reading = False
        self._held: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        self._reading = True
        super().data_received(data)
        self._reading = False
        if self._held is not None:  # the rest of it is still to come
            self.give_up(self._held)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        held = self._held
        if held is not None:
            self._held = None
            assert self._direct is not None
            if not self._direct.take(self, held):
                self.give_up(held)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Not a pipelined request whose turn has come: it may have been read to its end before.
        if self._direct is not None and self._reading and app is self.app:
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

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
        self._held = None
        super()._start_asgi_task(cycle, self.app)
