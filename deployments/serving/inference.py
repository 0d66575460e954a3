"""From checked tensors to outputs, for every protocol: counted, cached, inline or batched.

A row of a quick network is computed on the event loop: a thread would cost more than the row. What
takes longer goes through `batching`.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import anyio
import anyio.to_thread

from deployments.serving import metrics
from deployments.serving.batching import Batching
from deployments.serving.cache import Cache
from deployments.serving.decoder import Limits
from deployments.serving.decoding import Decoders
from deployments.serving.defaults import ANSWER_SECONDS, CACHE_BYTES
from deployments.serving.keys import ApiKey
from deployments.serving.ledger import EVERY, Counts, Ledger
from deployments.serving.protocol import InferRequest, ProtocolError, Tensors, count
from deployments.serving.session import Served, stacked
from deployments.serving.shadowing import LOWEST
from deployments.serving.turns import Who, overdue

LOOKUP_SECONDS = 0.0002
"""Computing that takes less is not looked up in the cache, which costs nearly as much."""
CACHE = "modelmint-cache"
"""The header that tells whether the response cache had the answer: `hit` or `miss`."""
T = TypeVar("T")


class Call(NamedTuple):
    """Who asks which version, and what for."""

    key: ApiKey
    served: Served
    size: int
    """Bytes of the request."""
    deadline: float
    """When the answer is due, in the event loop's time."""
    store: bool = True
    """Whether anything of it may be kept; if not, its answer is not from the response cache."""
    hurried: bool = False
    """Whether its caller named the deadline."""

    @property
    def who(self) -> Who:
        """Whose turn it takes."""
        return self.key.tenant, self.key.id

    def within(self, seconds: float) -> "Call":
        """The call, its answer due in so many seconds from now if that is sooner."""
        due = asyncio.get_running_loop().time() + seconds
        return self._replace(deadline=min(self.deadline, due))


class Found(NamedTuple):
    """The outputs by name, and whether the response cache had them; None when it was not asked."""

    outputs: Tensors
    hit: bool | None


class Settings(NamedTuple):
    """How a worker process computes."""

    slots: int = len(os.sched_getaffinity(0))
    """Threads that compute; a share of the cores when there are several workers."""
    seconds: float = ANSWER_SECONDS
    """Until the answer to a request that names no deadline."""
    cache_bytes: int = CACHE_BYTES
    """Size of the response cache; 0 is none."""
    uncached: frozenset[str] = frozenset()
    """Lines whose answers are never kept."""
    limits: Limits = Limits()
    """Of what decodes images, sounds and tables."""


DEFAULTS = Settings()


class Inference:
    """Computes the answers of one worker process, and charges for them."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.seconds = settings.seconds
        self.decoders = Decoders(settings.limits)
        # What nobody waits for takes none of those turns; its process starts when it is needed.
        self.shadow_decoders = Decoders(settings.limits._replace(decoders=1, nice=LOWEST))
        self._ledger = ledger
        self._batching = Batching(settings.slots)
        self._cache = Cache(settings.cache_bytes, settings.uncached)

    @contextmanager
    def metered(self, call: Call) -> Iterator[None]:
        """Where a request is read that may turn out to be none, which costs its sender its bytes.

        Not where this server fails, or is late by its own deadline. Raises ProtocolError 429 for a
        day that is used up, before anything is read.
        """
        with self.unnamed(call.key, call.size, call.served.line, hurried=call.hurried):
            yield

    @contextmanager
    def unnamed(
        self, key: ApiKey, size: int, line: str = EVERY, *, hurried: bool = False
    ) -> Iterator[None]:
        """The same where no line is known yet."""
        self._ledger.check(key, line, size)
        try:
            yield
        except ProtocolError as error:
            ours = error.status >= 500 and not (error.status == 504 and hurried)
            if error.status != 429 and not ours:
                self._ledger.add(key, line, Counts(bytes_in=size))
            raise

    async def read(self, call: Call, payload: bytes, media_type: str) -> tuple[Tensors, int]:
        """What a person sent as tensors, and its number of rows; raises as `Decoders.read` does."""
        read = self.decoders.read(call.served, payload, media_type, _left(call), call.who)
        return await _decoded(call, read)

    async def parse(self, call: Call, body: bytes, header_length: str | None) -> InferRequest:
        """The request in a body with much JSON; raises as `Decoders.parse` does."""
        parsed = self.decoders.parse(call.served, body, header_length, _left(call), call.who)
        return await _decoded(call, parsed)

    @contextmanager
    def charged(self, call: Call, rows: int, *, again: bool = False) -> Iterator[None]:
        """Where rows that are charged first are computed; what fails is given back, on its day.

        But for the request's bytes, unless it will be asked `again`. Raises ProtocolError 429 for
        a quota, 503 when nothing can be counted: then there is nothing to give back.
        """
        key, line = call.key, call.served.line
        day = self._ledger.charge(key, line, rows, call.size)
        try:
            yield
        except BaseException:
            size = call.size if again else 0
            self._ledger.add(key, line, Counts(requests=-1, rows=-rows, bytes_in=-size), day)
            raise

    async def run(self, call: Call, tensors: Tensors) -> Found:
        """Charge for the rows and compute them.

        Raises ProtocolError: 429 for a quota or a full queue, 504 past the deadline, 400 for values
        the network refuses. What was not computed is not charged, but for its bytes.
        """
        with self.charged(call, count(tensors)):
            return await self.compute(call, tensors)

    async def compute(self, call: Call, tensors: Tensors) -> Found:
        """Compute rows that are charged for, or look them up; raises as `run` does."""
        served, rows = call.served, count(tensors)
        store = call.store and not quick(served, rows)
        name = self._cache.key(served, call.key.tenant, tensors) if store else None
        kept = None if name is None else self._cache.get(name)
        if kept is not None:
            metrics.lookups(served.line, "hit").inc()
            return Found(kept, True)
        if rows <= served.inline_rows:
            outputs = served.run(tensors)
        else:
            outputs = await self._batching.run(served, tensors, rows, call.who, call.deadline)
        if name is None:
            return Found(outputs, None)
        metrics.lookups(served.line, "miss").inc()
        self._cache.put(name, outputs)
        return Found(outputs, False)

    async def run_chunks(self, call: Call, chunks: Iterator[Tensors], rows: int) -> Tensors:
        """Charge for so many rows and compute them chunk by chunk, others in between.

        Raises as `run` does.
        """
        found: list[Tensors] = []
        with self.charged(call, rows):
            while chunk := await in_thread(partial(next, chunks, None), call.deadline):
                size = count(chunk)
                found.append(
                    await self._batching.run(call.served, chunk, size, call.who, call.deadline)
                )
        return stacked(found)

    async def turn(self, call: Call, work: Callable[[], T]) -> T:
        """A stretch of something longer, computed alone when its turn has come; charges nothing.

        Raises what the work raises, and ProtocolError: 429 for a full queue, 504 past the deadline.
        """
        return await self._batching.turn(call.served, work, call.who, call.deadline)

    def close(self) -> None:
        """End what decodes."""
        for decoders in (self.decoders, self.shadow_decoders):
            decoders.close()

    def answered(self, call: Call, verb: str, start: float, rows: int, size: int) -> None:
        """Count an answer of `size` bytes; the request came at `start` of `time.perf_counter`."""
        line, number = call.served.line, call.served.number
        self._ledger.add(call.key, line, Counts(bytes_out=size))
        metrics.answers(line, number, verb).add(time.perf_counter() - start, rows)


def quick(served: Served, rows: int) -> bool:
    """Whether computing is over sooner than anything could be gained by looking elsewhere."""
    return rows <= served.inline_rows and rows * served.row_seconds < LOOKUP_SECONDS


async def in_thread(
    work: Callable[[], T], deadline: float, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """Work that is not computing a network, beside the event loop; ProtocolError 504 past it.

    What runs then runs to its end, unheard.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
    except TimeoutError:
        raise overdue() from None


def _left(call: Call) -> float:
    return call.deadline - asyncio.get_running_loop().time()


async def _decoded(call: Call, answer: Future[T]) -> T:
    try:
        async with asyncio.timeout_at(call.deadline):
            return await asyncio.wrap_future(answer)
    except TimeoutError:
        raise overdue() from None
