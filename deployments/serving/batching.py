"""Dynamic batching that adapts: what comes while the cores are busy is computed together next.

A request that finds a free slot runs at once; the others gather, and whenever a slot gets free the
next version's turn has come (round robin), which takes one request of each key in turn (fair
queuing, Nagle, RFC 970) until its batch is full. Nothing waits for a batch to fill, with one
exception: those who were answered together ask again together, and whoever ran at once would split
them into a large batch and a small one for ever, which take the time of two. So after a batch of
several its version pauses until as many wait again, the first of them for no longer than a row
saves in a batch.

Queues are bounded; in a full one the key with the most requests gives way. A request whose deadline
passes is answered then, and never computed. What takes many runs, such as a text that is written,
comes back for one turn after the other (iteration-level scheduling, Yu et al. 2022), and has it
alone.
"""

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from deployments.serving import metrics
from deployments.serving.protocol import ProtocolError, Tensors
from deployments.serving.session import Served, stacked

MOST_WAITING = 1024
"""Requests that may wait for one version."""
MOST_BYTES = 128_000_000
"""Bytes of tensors that may wait for one version."""
Name = tuple[str, str]
"""Line and digest of a version."""
STALE_SECONDS = 0.1
"""After which those who were answered together are not expected back together."""
T = TypeVar("T")


class Asked(Protocol):
    """Tensors that a version is to compute, and their number of rows."""

    @property
    def tensors(self) -> Tensors: ...

    @property
    def rows(self) -> int: ...


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits for its turn."""

    tensors: Tensors
    rows: int
    size: int
    answer: "asyncio.Future[Any]"
    work: Callable[[], Any] | None = None
    """What to do instead of computing the tensors, of which there are none."""
    origin: Any = None
    """What a trace has to know of where it came from."""
    admitted: bool = False
    """Whether it is the rest of a request that was let in before, with all its bytes."""

    def fits(self, other: "Waiting") -> bool:
        """Whether both can be rows of one batch: all lengths but the first are equal."""
        return self.work is None and other.work is None and fit(self.tensors, other.tensors)


class Batching:
    """Runs versions in `slots` threads, for the event loop of one process."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._slots = slots
        self._threads = ThreadPoolExecutor(slots, "modelmint-compute")
        self._queues: OrderedDict[Name, _Queue] = OrderedDict()
        self._begun: Counter[Name] = Counter()
        """Bytes of requests that are computed in turns and have begun."""
        self._pauses: dict[Name, _Pause] = {}

    async def run(
        self, served: Served, tensors: Tensors, rows: int, key: str, deadline: float
    ) -> Tensors:
        """The outputs, computed alone or with others; `deadline` is in the loop's time.

        Many rows are computed some at a time, with others' requests between them. Raises
        ProtocolError: 429 when too many wait, 504 when the deadline passes, and what `Served.run`
        raises.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        most, name = served.turn_rows or rows, (served.line, served.digest)
        found: list[Tensors] = []
        try:
            for start in range(0, rows, most):
                part = {n: t[start : start + most] for n, t in tensors.items()}
                answer = asyncio.get_running_loop().create_future()
                waiting = Waiting(
                    part if rows > most else tensors, min(most, rows - start), 0 if found else size,
                    answer, origin=self._origin(), admitted=bool(found),
                )  # fmt: skip
                found.append(await self._wait(served, waiting, key, deadline))
                if rows > most and len(found) == 1:
                    self._begun[name] += size
        finally:
            if rows > most and found:
                self._begun[name] -= size
        return found[0] if len(found) == 1 else stacked(found)

    async def turn(self, served: Served, work: Callable[[], T], key: str, deadline: float) -> T:
        """What `work` gives, done in one of the slots when its turn has come.

        Raises what it raises, and ProtocolError as `run` does.
        """
        answer = asyncio.get_running_loop().create_future()
        waiting = Waiting({}, 1, 0, answer, work)
        found: T = await self._wait(served, waiting, key, deadline)
        return found

    async def _wait(self, served: Served, waiting: Waiting, key: str, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        name = served.line, served.digest
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(served)
        queue.put(key, waiting, self._slots, self._begun[name])
        self._start(loop)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting.answer
        except TimeoutError:
            raise ProtocolError(504, "the deadline passed before the answer", "deadline") from None

    def _origin(self) -> Any:
        """Overridden where requests are traced."""

    def _computed(self, served: Served, batch: list[Waiting]) -> list[Any]:
        return _turned(served, batch)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free:
            name = next((name for name in self._queues if not self._pausing(name, loop)), None)
            if name is None:
                return
            queue = self._queues.pop(name)
            batch = queue.take()
            if queue.length:
                self._queues[name] = queue  # to the end: versions take turns
            if batch:
                self._free -= 1
                running = loop.run_in_executor(self._threads, self._computed, queue.served, batch)
                running.add_done_callback(partial(self._finish, loop, queue.served, batch))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        served: Served,
        batch: list[Waiting],
        done: "asyncio.Future[list[Any]]",
    ) -> None:
        self._free += 1
        if len(batch) > 1:
            self._pause((served.line, served.digest), len(batch), served, loop.time())
        self._start(loop)  # first: the cores work while the answers are written
        for waiting, found in zip(batch, done.result(), strict=True):
            if waiting.answer.done():
                continue
            if isinstance(found, Exception):
                waiting.answer.set_exception(found)
            else:
                waiting.answer.set_result(found)

    def _pause(self, name: Name, answered: int, served: Served, now: float) -> None:
        queue = self._queues.get(name)
        wanted = min(answered + (queue.length if queue else 0), served.batch_rows // 2)
        self._pauses[name] = _Pause(wanted, now + STALE_SECONDS)

    def _pausing(self, name: Name, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a version for which somebody waits is to wait for more."""
        pause, queue = self._pauses.get(name), self._queues[name]
        if pause is None:
            return False
        if queue.length >= pause.wanted or not (pause.begun or loop.time() < pause.stale):
            del self._pauses[name]
            return False
        if not pause.begun:
            pause.begun = True
            loop.call_later(queue.served.pause_seconds, self._resume, name, pause, loop)
        return True

    def _resume(self, name: Name, pause: "_Pause", loop: asyncio.AbstractEventLoop) -> None:
        # Its word counts, not the clock's: uvloop's timers are early by up to half a millisecond.
        if self._pauses.get(name) is pause:
            del self._pauses[name]
            self._start(loop)


@dataclass(slots=True)
class _Pause:
    """Until so many requests wait, or a time after the first of them is over."""

    wanted: int
    stale: float
    begun: bool = False


class _Queue:
    """What waits for one version: first come, first served for each key, keys in turns."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.length = 0
        self._bytes = 0
        self._keys: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._gauge = metrics.queue(served.line)

    def put(self, key: str, waiting: Waiting, slots: int, begun: int) -> None:
        """Raises ProtocolError 429 when the queue is full and the key's share used up.

        `begun` bytes are held by requests whose rest comes again.
        """
        if not waiting.admitted and self._full(waiting, begun):
            self._purge()
        while not waiting.admitted and self._full(waiting, begun):
            largest = max(self._keys, key=lambda name: len(self._keys[name]), default=key)
            mine = len(self._keys.get(key, ()))
            refusal = ProtocolError(
                429,
                f"too many requests wait for {self.served.line}: ask again later",
                "overloaded",
                retry_after=math.ceil(self.length * self.served.row_seconds / slots),
            )
            if largest == key or len(self._keys[largest]) <= mine + 1:
                raise refusal
            if self._keys[largest][-1].admitted:
                raise refusal
            self._pop(largest, newest=True).answer.set_exception(refusal)
        self._keys.setdefault(key, deque()).append(waiting)
        self._count(1, waiting)

    def take(self) -> list[Waiting]:
        """The next batch: requests that can be computed together, none that expired."""
        most = self.served.batch_rows
        batch: list[Waiting] = []
        rows, more = 0, True
        while more:
            more = False
            for key in list(self._keys):
                first = self._keys[key][0]
                if first.answer.done():
                    self._pop(key)
                    more = True
                elif not batch or (rows + first.rows <= most and first.fits(batch[0])):
                    batch.append(self._pop(key))
                    rows += first.rows
                    more = True
                if rows >= most:
                    return batch
        return batch

    def _full(self, waiting: Waiting, begun: int) -> bool:
        held = self._bytes + begun
        return self.length >= MOST_WAITING or (held > 0 and held + waiting.size > MOST_BYTES)

    def _pop(self, key: str, newest: bool = False) -> Waiting:
        """Take a key's next request; the key goes to the end of the line."""
        queue = self._keys.pop(key)
        found = queue.pop() if newest else queue.popleft()
        if queue:
            self._keys[key] = queue
        self._count(-1, found)
        return found

    def _purge(self) -> None:
        for key, queue in list(self._keys.items()):
            for waiting in [one for one in queue if one.answer.done()]:
                queue.remove(waiting)
                self._count(-1, waiting)
            if not queue:
                del self._keys[key]

    def _count(self, change: int, waiting: Waiting) -> None:
        self.length += change
        self._bytes += change * waiting.size
        self._gauge.inc(change)


def _turned(served: Served, batch: list[Waiting]) -> list[Any]:
    """What a batch's turn gives each of its requests, or why there is nothing."""
    if batch[0].work is not None:
        return [_alone(batch[0].work)]
    metrics.batches(served.line, served.number).observe(sum(one.rows for one in batch))
    return compute(served, batch)


def fit(ours: Tensors, theirs: Tensors) -> bool:
    """Whether all lengths but the first are equal."""
    return all(ours[name].shape[1:] == theirs[name].shape[1:] for name in ours)


def compute(served: Served, batch: Sequence[Asked]) -> list[Any]:
    """The outputs of each request, computed together, or the exception it raises alone."""
    if len(batch) == 1:
        return [_alone(partial(served.run, batch[0].tensors))]
    try:
        names = batch[0].tensors
        joined = {name: np.concatenate([one.tensors[name] for one in batch]) for name in names}
        found = served.run(joined)
    except Exception:
        # Whose values the network refuses cannot be told from here: nobody else may suffer.
        return [_alone(partial(served.run, one.tensors)) for one in batch]
    answers: list[Any] = []
    start = 0
    for one in batch:
        answers.append({name: array[start : start + one.rows] for name, array in found.items()})
        start += one.rows
    return answers


def _alone(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # the caller's, not the thread's
        return error
