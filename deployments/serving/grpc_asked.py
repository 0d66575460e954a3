"""A call of gRPC, as the request it would be over HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from deployments.serving.http import INLINE_BYTES, request_id, take_id
from deployments.serving.inference import in_thread
from deployments.serving.protocol import ProtocolError

T = TypeVar("T")


class Asked:
    """A message, and the request it would be over HTTP: its headers are the metadata."""

    def __init__(self, message: Any, context: Any) -> None:
        self.message, self._context = message, context
        metadata: Sequence[tuple[str, Any]] = context.invocation_metadata() or ()
        fields = [
            (name.encode(), value.encode("latin-1"))
            for name, value in metadata
            if isinstance(value, str)
        ]
        self.request = Request({"type": "http", "headers": fields, "path_params": {}, "state": {}})
        self.hit: bool | None = None
        self.size = 0
        """Bytes of the message."""

    async def read(self, body: bytes, seconds: float) -> None:
        """Let the message be what came; raises DecodeError."""
        self.size = len(body)
        await self.beside(partial(self.message.ParseFromString, body), self.deadline(seconds))

    async def beside(self, work: Callable[[], T], deadline: float) -> T:
        """Work on the message: of a large one beside the event loop, which goes on."""
        return work() if self.size <= INLINE_BYTES else await in_thread(work, deadline)

    def name(self) -> None:
        """Let the message's id name the request where the metadata does not."""
        take_id(self.request, getattr(self.message, "id", None))
        request_id(self.request)

    def deadline(self, seconds: float) -> float:
        """When the answer is due, in the loop's time: the caller's deadline, at most `seconds`."""
        left = self._context.time_remaining()
        return asyncio.get_running_loop().time() + min(seconds, seconds if left is None else left)

    def trailers(self, refusal: ProtocolError | None = None) -> tuple[tuple[str, str], ...]:
        """What HTTP says in headers."""
        found: dict[str, str] = {"x-request-id": request_id(self.request)}
        found |= getattr(self.request.state, "headers", {})
        if self.hit is not None:
            found["modelmint-cache"] = "hit" if self.hit else "miss"
        if refusal:
            found["modelmint-code"] = refusal.code
            if refusal.retry_seconds is not None:
                found["retry-after"] = refusal.retry_seconds
        return tuple(found.items())
