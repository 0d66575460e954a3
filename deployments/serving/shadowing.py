"""What a shadow computes again, and how its answers compare; no caller waits for any of it.

One thread a worker computes, of the lowest priority, what was answered already. What may wait for
it is bounded; the rest is dropped, and counted.
"""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from onnxruntime import RunOptions

from deployments.serving.protocol import Tensors
from deployments.serving.session import Served, finite
from deployments.serving.state import Shadow

SHADOW = (
    "requests", "failed", "dropped", "rows", "different_rows", "largest_difference_millionths",
    "nanoseconds",
)  # fmt: skip
WAITING = 64
"""Requests that may wait for the shadow; the next ones are dropped, and counted."""
WAITING_BYTES = 64_000_000
CLOSE_SECONDS = 2.0
"""Until what is computed has ended; it is asked to between the nodes of a network."""
SAME = 0.01
"""Largest difference of two numbers, relative to the larger one, that counts as none."""
LOWEST = 19
"""The priority of what nobody waits for."""
Read = Callable[[Served], Tensors]
Add = Callable[[str, Shadow, dict[str, int], tuple[str, int] | None], None]
"""Counts for a line's trial, and a figure of which the largest is kept."""
_log = logging.getLogger("modelmint.serving")


class Mirrored(NamedTuple):
    """A request that was answered by one version and is to be computed by another."""

    served: Served
    other: Served
    trial: Shadow
    tensors: Tensors
    read: Read | None
    size: int
    """Bytes it holds while it waits."""


class Shadowing:
    """The shadow's thread of one worker, and what waits for it.

    `goes_on` tells whether a line's trial has not ended.
    """

    def __init__(
        self,
        add: Add,
        goes_on: Callable[[str, Shadow], bool],
    ) -> None:
        self._add, self._goes_on = add, goes_on
        self._waiting: queue.Queue[Mirrored | None] = queue.Queue(WAITING)
        self._lock, self._bytes = threading.Lock(), 0
        self._closed = threading.Event()
        self._running: tuple[Mirrored, RunOptions] | None = None
        self._thread = threading.Thread(target=self._keep_computing, name="shadow", daemon=True)
        self._thread.start()

    async def offer(self, one: Mirrored) -> None:
        """Let it wait, or drop it where there is no room; never waits itself."""
        running = self._running
        if running is not None and not self._wanted(running[0]):
            running[1].terminate = True  # the thread is for another trial now
        with self._lock:
            room = self._bytes + one.size <= WAITING_BYTES and not self._waiting.full()
            if room:
                self._bytes += one.size
                self._waiting.put_nowait(one)
        if not room:
            self._add(one.served.line, one.trial, {"dropped": 1}, None)

    def close(self) -> None:
        """Compute nothing more. A process that ends while ONNX Runtime computes is aborted."""
        self._closed.set()
        with self._lock, suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        if (running := self._running) is not None:
            running[1].terminate = True
        self._thread.join(CLOSE_SECONDS)

    def _wanted(self, one: Mirrored) -> bool:
        return not self._closed.is_set() and self._goes_on(one.served.line, one.trial)

    def _keep_computing(self) -> None:
        # Whoever waits for an answer goes first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while (one := self._waiting.get()) is not None:
            with self._lock:
                self._bytes -= one.size
            self._running = one, (options := RunOptions())
            try:
                if self._wanted(one):
                    self._compute(one, options)
            except Exception:  # such as a full disk: the next request is another one
                _log.exception("a shadow of %s is not compared", one.served.line)
            self._running = None

    def _compute(self, one: Mirrored, options: RunOptions) -> None:
        served, other, tensors = one.served, one.other, one.tensors
        try:
            given = tensors if one.read is None else one.read(other)
            start = time.perf_counter_ns()
            theirs = other.run({spec.name: given[spec.name] for spec in other.inputs}, options)
            spent = time.perf_counter_ns() - start
            ours = served.run(tensors, options)
            rows, different, distance = _difference(served, other, ours, theirs)
        except Exception as error:  # whatever the shadow cannot do concerns no caller
            if self._wanted(one):
                _log.info("shadow %s/%s: %s", other.line, other.number, type(error).__name__)
                self._add(served.line, one.trial, {"requests": 1, "failed": 1}, None)
            return
        added = {"requests": 1, "rows": rows, "different_rows": different, "nanoseconds": spent}
        largest = "largest_difference_millionths", int(min(distance, 1e6) * 1e6)
        self._add(served.line, one.trial, added, largest)


def _difference(
    served: Served, other: Served, ours: Tensors, theirs: Tensors
) -> tuple[int, int, float]:
    """Rows, rows answered differently, and the largest distance relative to our spread."""
    first, second = ours[served.outputs[0].name], theirs[other.outputs[0].name]
    answers = [
        [next(iter(answer.values())) for answer in one.signature.objective.answer(output)]
        for one, output in ((served, first), (other, second))
    ]
    different = sum(not _same(a, b) for a, b in zip(*answers, strict=True))
    if first.shape != second.shape or not (finite(first) and finite(second)):
        return len(first), different, float("inf") if different else 0.0
    return len(first), different, served.signature.closeness(second, first)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= SAME * max(abs(one), abs(other))
    return one == other


def told(found: dict[str, int]) -> dict[str, Any]:
    """What was counted, for people."""
    computed = found["requests"] - found["failed"]
    return {
        **{n: found[n] for n in ("requests", "failed", "dropped", "rows", "different_rows")},
        "largest_difference": found["largest_difference_millionths"] / 1e6,
        "mean_ms": round(found["nanoseconds"] / max(1, computed) / 1e6, 3),
    }
