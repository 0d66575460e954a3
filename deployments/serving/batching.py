"""Dynamic batching that adapts: what comes while the cores are busy is computed together next.

A request that finds a free slot runs at once; the others gather, and whenever a slot gets free the
next version's turn has come (round robin), which takes one request of each tenant in turn (`turns`)
until its batch is full. Nothing waits for a batch to fill, with one exception: those who were
answered together ask again together, and whoever ran at once would split them into a large batch
and a small one for ever, which take the time of two. So after a batch of several its version pauses
until as many wait again, the first of them for no longer than a row saves in a batch.

A request whose deadline passes is answered then, and never computed. What takes many runs, such as
a text that is written, comes back for one turn after the other (iteration-level scheduling, Yu et
al. 2022), and has it alone.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from deployments.serving import metrics
from deployments.serving.protocol import Tensors
from deployments.serving.session import Served, stacked
from deployments.serving.turns import Turn, Turns, Who, overdue

Name = tuple[str, str]
"""Line and digest of a version."""
STALE_SECONDS = 0.1
"""After which those who were answered together are not expected back together."""
T = TypeVar("T")


class Rows(Protocol):
    """Tensors that a version is to compute, and their number of rows."""

    @property
    def tensors(self) -> Tensors: ...

    @property
    def rows(self) -> int: ...


@dataclass(slots=True, eq=False)
class Waiting(Turn):
    """A request that waits for its turn."""

    tensors: Tensors
    rows: int
    answer: "asyncio.Future[Any]"
    work: Callable[[], Any] | None = None
    """What to do instead of computing the tensors, of which there are none."""
    origin: Any = None
    """What a trace has to know of where it came from."""

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
        self, served: Served, tensors: Tensors, rows: int, who: Who, deadline: float
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
                    who, 0 if found else size, deadline,
                    part if rows > most else tensors, min(most, rows - start),
                    answer, origin=self._origin(), admitted=bool(found),
                )  # fmt: skip
                found.append(await self._wait(served, waiting))
                if rows > most and len(found) == 1:
                    self._begun[name] += size
        finally:
            if rows > most and found:
                self._begun[name] -= size
        return found[0] if len(found) == 1 else stacked(found)

    async def turn(self, served: Served, work: Callable[[], T], who: Who, deadline: float) -> T:
        """What `work` gives, done in one of the slots when its turn has come.

        Raises what it raises, and ProtocolError as `run` does.
        """
        answer = asyncio.get_running_loop().create_future()
        waiting = Waiting(who, 0, deadline, {}, 1, answer, work)
        found: T = await self._wait(served, waiting)
        return found

    async def _wait(self, served: Served, waiting: Waiting) -> Any:
        loop = asyncio.get_running_loop()
        name = served.line, served.digest
        queue = self._queues.get(name)
        alone = queue is None and name not in self._pauses and not self._begun[name]
        if alone and self._free:
            self._begin(loop, served, [waiting])  # it need not wait
        else:
            if queue is None:
                queue = self._queues[name] = _Queue(served)
            queue.put(waiting, loop.time(), self._slots, self._begun[name])
            self._start(loop)
        try:
            async with asyncio.timeout_at(waiting.until):
                return await waiting.answer
        except BaseException as error:
            if queue is not None:
                queue.drop(waiting)
            if isinstance(error, TimeoutError):
                raise overdue() from None
            raise

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
                self._begin(loop, queue.served, batch)

    def _begin(self, loop: asyncio.AbstractEventLoop, served: Served, batch: list[Waiting]) -> None:
        self._free -= 1
        running = loop.run_in_executor(self._threads, self._computed, served, batch)
        running.add_done_callback(partial(self._finish, loop, served, batch))

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
    """What waits for one version."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._turns: Turns[Waiting] = Turns(f"for {served.line}")
        self._told = 0
        self._gauge = metrics.queue(served.line)

    @property
    def length(self) -> int:
        return self._turns.length

    def put(self, waiting: Waiting, now: float, slots: int, begun: int) -> None:
        """Let it wait, or another one no more: the answer of who gives way is ProtocolError 429.

        `begun` bytes are held by requests whose rest comes again.
        """
        for one, error in self._turns.put(waiting, now, self.served.row_seconds / slots, begun):
            if not one.answer.done():
                one.answer.set_exception(error)
        self._tell()

    def take(self) -> list[Waiting]:
        """The next batch: requests that can be computed together, none that expired."""
        most = self.served.batch_rows
        batch: list[Waiting] = []
        rows = 0

        def fits(one: Waiting) -> bool:
            fitting = not batch or (rows + one.rows <= most and one.fits(batch[0]))
            return fitting or one.answer.done()

        for one in self._turns.take(fits):
            if not one.answer.done():
                batch.append(one)
                rows += one.rows
            if rows >= most:
                break
        self._tell()
        return batch

    def drop(self, waiting: Waiting) -> None:
        """Let go of one that nobody waits for, if it is still here."""
        self._turns.drop(waiting)
        self._tell()

    def _tell(self) -> None:
        if self._told != self.length:
            self._gauge.inc(self.length - self._told)
            self._told = self.length


def _turned(served: Served, batch: list[Waiting]) -> list[Any]:
    """What a batch's turn gives each of its requests, or why there is nothing."""
    if batch[0].work is not None:
        return [_alone(batch[0].work)]
    metrics.batches(served.line, served.number).observe(sum(one.rows for one in batch))
    return compute(served, batch)


def fit(ours: Tensors, theirs: Tensors) -> bool:
    """Whether all lengths but the first are equal."""
    return all(ours[name].shape[1:] == theirs[name].shape[1:] for name in ours)


def compute(served: Served, batch: Sequence[Rows]) -> list[Any]:
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
