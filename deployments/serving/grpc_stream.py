"""A stream of requests and their answers, which go in the order in which the requests came.

Several are computed at a time. No more is read while so many answers, or bytes of them, are not yet
written: who does not read them is not read from either.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import grpc.aio

from deployments.serving import metrics
from deployments.serving.grpc_listener import IDLE_SECONDS
from deployments.serving.grpc_room import Place
from deployments.serving.protocol import ProtocolError

MOST_WAITING = 32
"""Requests of a stream whose answers are not yet written."""
MOST_BYTES = 4_000_000
"""Bytes of those requests, or of their answers; a single one may be larger."""


class Reply(NamedTuple):
    """The answer to a request; where it has `ends`, that ends the stream instead."""

    body: bytes
    ends: ProtocolError | None = None


Answer = Callable[[bytes], Coroutine[Any, Any, Reply]]


async def converse(
    context: Any, place: Place, check: Callable[[], object], answer: Answer, seconds: float
) -> ProtocolError | None:
    """Answer what comes until the caller ends it; else the reason why the stream has to end.

    `check` is asked before anything is read, and ends the stream by a ProtocolError. The caller
    must take an answer within `seconds`. Once `place` is to be left, no more is read, and what came
    is answered.
    """
    stream = _Stream(context, place, answer)
    try:
        while True:
            if stream.has_room():
                try:
                    check()
                    stream.read()
                except ProtocolError as refusal:
                    stream.stop(refusal)
            if stream.over:
                return stream.ending
            await stream.step()
            if (reply := stream.answered()) is None:
                continue
            if reply.ends is not None:
                return reply.ends
            try:
                async with asyncio.timeout(seconds):
                    await context.write(reply.body)
            except TimeoutError:
                stream.stop(ProtocolError(408, "an answer was not read in time", "timeout"))
                return stream.ending
    finally:
        stream.cancel()


class _Stream:
    """What is under way: a message that comes, and requests whose answers are not written."""

    def __init__(self, context: Any, place: Place, answer: Answer) -> None:
        self._context, self._place, self._answer = context, place, answer
        self._reading: asyncio.Task[Any] | None = None
        self._waiting: deque[tuple[asyncio.Task[Reply], int]] = deque()
        self._ended = False
        self.ending: ProtocolError | None = None
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place.watch(self._tell)

    def _tell(self) -> None:
        if not self._told.done():
            self._told.set_result(None)

    def has_room(self) -> bool:
        """Whether the next message is to be read now."""
        if self._ended or self._reading is not None or len(self._waiting) >= MOST_WAITING:
            return False
        held = (len(task.result().body) if task.done() else size for task, size in self._waiting)
        return sum(held) < MOST_BYTES

    def read(self) -> None:
        """Begin to read a message."""
        self._reading = asyncio.create_task(self._context.read())

    def stop(self, ending: ProtocolError | None = None) -> None:
        """Read no more."""
        self._ended, self.ending = True, ending
        if ending is not None:
            metrics.refused(ending.status, ending.code)
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None

    @property
    def over(self) -> bool:
        """Whether all that came is answered and no more comes."""
        return self._ended and not self._waiting

    async def step(self) -> None:
        """Until something came or the next answer is there, or neither for long."""
        awaited: list[asyncio.Future[Any]] = [self._waiting[0][0]] if self._waiting else []
        if self._reading is not None:
            awaited.append(self._reading)
        if not self._ended:
            awaited.append(self._told)
        patience = None if self._waiting else IDLE_SECONDS
        done, _ = await asyncio.wait(
            awaited, timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )  # fmt: skip
        if self._reading is not None and self._reading.done():
            body = self._reading.result()
            self._reading = None
            if body is grpc.aio.EOF:
                self.stop()
            else:
                task = asyncio.create_task(self._answer(bytes(body)))
                self._waiting.append((task, len(body)))
        if not self._ended and self._place.refusal is not None:
            self.stop(self._place.refusal)
        if not done:
            words = f"no request came for {IDLE_SECONDS:g} s: start another stream"
            self.stop(ProtocolError(408, words, "timeout"))

    def answered(self) -> Reply | None:
        """The next answer, if it is there."""
        if not self._waiting or not self._waiting[0][0].done():
            return None
        return self._waiting.popleft()[0].result()

    def cancel(self) -> None:
        """Let go of everything."""
        if self._reading is not None:
            self._reading.cancel()
        for task, _ in self._waiting:
            task.cancel()
