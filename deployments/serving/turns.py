"""What waits to be decoded: first come, first served for each key, keys in turns, within bounds.

Where there is no room the key that takes most of what is short gives way, be it places or bytes.
What is dropped is let go of at once, with the bytes it holds.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deployments.serving.protocol import ProtocolError

MOST_WAITING = 1024
"""Requests that may wait in one worker process."""
MOST_BYTES = 128_000_000
"""Bytes of what people sent that may wait there; a single request may be larger."""
Answer = Future[Any]


class Asked(NamedTuple):
    """A request whose turn will come."""

    work: Callable[[], Any]
    size: int
    """Bytes it holds."""
    until: float
    """When its answer is due, in the time of `time.monotonic`."""


class Refused(NamedTuple):
    """Whom to tell that its turn will not come, and why."""

    answer: Answer
    error: ProtocolError


class Turns:
    """The requests that wait, each known by its answer; not thread-safe."""

    def __init__(self) -> None:
        self.length = 0
        self._bytes = 0
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    def put(self, key: str, answer: Answer, asked: Asked, pace: float) -> list[Refused]:
        """Let a request wait; those that shall not any more, of which it may be one itself.

        A turn comes about every `pace` seconds.
        """
        refused: list[Refused] = []
        given_up: list[tuple[str, Answer, Asked]] = []
        if self._crowded() or self._heavy(asked):
            refused += self._late()
        while (crowded := self._crowded()) or self._heavy(asked):

            def weight(name: str, by_count: bool = crowded) -> int:
                one = self._keys.get(name, _Key())
                return len(one.asked) if by_count else one.size

            error = ProtocolError(
                429,
                "too many requests wait to be decoded: ask again later",
                "overloaded",
                retry_after=math.ceil(self.length * pace),
            )
            largest = max(self._keys, key=weight)
            if weight(largest) <= weight(key) + (1 if crowded else asked.size):
                # Nobody gives way for one that does not fit all the same.
                for name, other, before in reversed(given_up):
                    self._add(name, other, before)
                return [*refused, Refused(answer, error)]
            newest, last = next(reversed(self._keys[largest].asked.items()))
            self.drop(largest, newest)
            given_up.append((largest, newest, last))
        self._add(key, answer, asked)
        return [*refused, *(Refused(one, error) for _, one, _ in given_up)]

    def _add(self, key: str, answer: Answer, asked: Asked) -> None:
        mine = self._keys.setdefault(key, _Key())
        mine.asked[answer] = asked
        self._count(1, mine, asked)

    def take(self) -> tuple[Answer, Asked] | None:
        """The next request; its key goes to the end of the line."""
        if not self._keys:
            return None
        key, mine = next(iter(self._keys.items()))
        answer, asked = next(iter(mine.asked.items()))
        self._keys.move_to_end(key)
        self.drop(key, answer)
        return answer, asked

    def drop(self, key: str, answer: Answer) -> None:
        """Forget a request, if it waits."""
        mine = self._keys.get(key)
        asked = mine.asked.pop(answer, None) if mine is not None else None
        if mine is None or asked is None:
            return
        self._count(-1, mine, asked)
        if not mine.asked:
            del self._keys[key]

    def clear(self) -> list[Answer]:
        """Forget all of them; their answers."""
        left = [answer for one in self._keys.values() for answer in one.asked]
        self._keys.clear()
        self.length = self._bytes = 0
        return left

    def _late(self) -> list[Refused]:
        now = time.monotonic()
        late = [
            (key, answer)
            for key, one in self._keys.items()
            for answer, asked in one.asked.items()
            if asked.until <= now
        ]
        for key, answer in late:
            self.drop(key, answer)
        return [Refused(answer, overdue()) for _, answer in late]

    def _crowded(self) -> bool:
        return self.length >= MOST_WAITING

    def _heavy(self, asked: Asked) -> bool:
        return self.length > 0 and self._bytes + asked.size > MOST_BYTES

    def _count(self, change: int, mine: "_Key", asked: Asked) -> None:
        self.length += change
        self._bytes += change * asked.size
        mine.size += change * asked.size


def overdue() -> ProtocolError:
    """What a request is told whose deadline passed."""
    return ProtocolError(504, "the deadline passed before the answer", "deadline")


@dataclass(slots=True)
class _Key:
    """What waits of one key, and its bytes."""

    asked: OrderedDict[Answer, Asked] = field(default_factory=OrderedDict)
    size: int = 0
