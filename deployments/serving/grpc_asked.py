"""A call of gRPC, as the request it would be over HTTP."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import anyio
import grpc
from starlette.requests import Request

from deployments.serving.grpc_wire import check_size
from deployments.serving.http import INLINE_BYTES, header, identity, request_id, take_id
from deployments.serving.inference import in_thread
from deployments.serving.protocol import ProtocolError

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED, 409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED, 422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
T = TypeVar("T")


class Told(NamedTuple):
    """The message that answers, or why there is none."""

    found: Any
    refusal: ProtocolError | None = None

    @property
    def status(self) -> Any:
        """The status in gRPC's words."""
        if self.refusal is None:
            return grpc.StatusCode.OK
        return STATUS.get(self.refusal.status, grpc.StatusCode.INTERNAL)


class Asked:
    """A message, and the request it would be over HTTP: its headers are the metadata.

    Those of a stream's are the same for all its messages, so each is named by its own id first.
    """

    def __init__(self, message: Any, context: Any, of_stream: bool = False) -> None:
        self.message, self._context, self._of_stream = message, context, of_stream
        self.start = time.perf_counter()
        """When the call came, or this message of a stream."""
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

    async def read(
        self, body: bytes, seconds: float, one: anyio.CapacityLimiter | None = None
    ) -> None:
        """Let the message be what came, a large one when `one` has its turn.

        Raises DecodeError, and ProtocolError: 413 for what would be too large in memory, 504 past
        the deadline.
        """
        self.size = len(body)

        def parse() -> None:
            check_size(body)
            self.message.ParseFromString(body)

        await self.beside(parse, self.deadline(seconds), one)

    async def beside(
        self, work: Callable[[], T], deadline: float, limiter: anyio.CapacityLimiter | None = None
    ) -> T:
        """Work on the message: of a large one beside the event loop, which goes on."""
        return work() if self.size <= INLINE_BYTES else await in_thread(work, deadline, limiter)

    def name(self) -> None:
        """Let the message's id name the request where the metadata does not."""
        inside = getattr(self.message, "id", None)
        if self._of_stream:
            self.request.state.request_id = identity(inside, header(self.request, b"x-request-id"))
        else:
            take_id(self.request, inside)
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
