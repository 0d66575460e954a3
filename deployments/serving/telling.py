"""How a text that is written reaches its caller: whole, or event by event while it is written."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from deployments.serving import metrics
from deployments.serving.events import EventStream
from deployments.serving.http import as_json
from deployments.serving.protocol import ProtocolError
from deployments.serving.writing import Written
from models.generation import Step


class Telling(Protocol):
    """The words of a protocol for texts that are written; `steps` are those of every text."""

    def whole(self, steps: list[list[Step]]) -> dict[str, Any]:
        """The answer, when nothing is told before the end."""

    def part(self, written: Written) -> bytes:
        """What a turn has written, as events."""

    def last(self, steps: list[list[Step]]) -> bytes:
        """The end of a stream, as events."""

    def refused(self, error: ProtocolError) -> bytes:
        """That nothing more comes, and why, as an event."""


Done = Callable[[list[list[Step]], int], None]
"""Called at the end, whatever ended it, with the steps of every text and the bytes sent."""
Source = AsyncGenerator[Written, None]


async def tell(
    request: Request, written: Source, count: int, telling: Telling, headers: dict[str, str],
    stream: bool, done: Done,
) -> Response:  # fmt: skip
    """The answer that tells so many texts; writing ends when the caller leaves."""
    steps: list[list[Step]] = [[] for _ in range(count)]
    if stream:
        begun = await anext(written)  # what is refused is refused before the stream begins
        return EventStream(_events(request, begun, written, steps, telling, done), headers)
    async with aclosing(written):
        async for index, found in written:
            steps[index] += found
            if await request.is_disconnected():
                raise ProtocolError(400, "the caller left", "disconnected")
    answered = as_json(telling.whole(steps), headers=headers)
    done(steps, len(answered.body))
    return answered


async def _events(
    request: Request, begun: Written, written: Source, steps: list[list[Step]], telling: Telling,
    done: Done,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    one: Written | None = begun
    size = 0
    try:
        async with aclosing(written):
            while one is not None:
                steps[one.place] += one.steps
                part = telling.part(one)
                size += len(part)
                yield part
                one = await anext(written, None)
        last = telling.last(steps)
        size += len(last)
        yield last
    except ProtocolError as error:  # its status was sent long ago
        request.state.broken = error.status
        metrics.refused(error.status, error.code)
        yield telling.refused(error)
    finally:
        done(steps, size)
