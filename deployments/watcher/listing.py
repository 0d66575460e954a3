"""What a prefix holds, kept up to date by listing parts of it again.

A store does not tell what changed since its last listing, and to list a million objects takes
minutes. The digest of a listing is a sum (tasks.arrivals), so a prefix is kept as ranges of names
with a sum each. A look lists those in which something may have changed: hinted at, changed at the
last look, the last one, where names with a date in them land; and a part of the others in turn, so
that each is listed again within a bounded time, whatever hints were lost.
"""

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.arrivals import Seen, Tally
from tasks.store import store

RANGE = 10_000
"""Objects of a range when it is cut: ten requests."""
EVERYTHING = ""


Order = Callable[[str], str]
# Of the names, as S3 lists them, and of the folders in them, as a filer like SeaweedFS does.
ORDERS: tuple[Order, ...] = (str, lambda name: name.replace("/", "\0"))


class _DisorderError(Exception):
    """The store does not list in the order that was presumed."""


@dataclass
class _Range:
    """The names after `after`, up to and with the next range's."""

    after: str
    tally: Tally = field(default_factory=Tally)
    stale: bool = True
    look: int = 0


class KnownListing:
    """What is known of a prefix. Where a store lists in no order, as S3's directory buckets do,
    every look lists all.
    """

    def __init__(self, prefix: str, size: int = RANGE) -> None:
        self.prefix, self.size = prefix, size
        self._orders = list(ORDERS)
        self._ranges = [_Range("")]
        # Added to by any thread.
        self._hinted: deque[str] = deque()
        self._cursor = ""
        self._look = 0

    def hint(self, key: str) -> None:
        """The object with that key may have changed; with EVERYTHING, any may have."""
        self._hinted.append(key.removeprefix(self.prefix))

    def look(self, seconds: float) -> Seen:
        """What is there, by this and earlier looks: one range of those without news is listed, and
        more until `seconds` have gone by. Raises StoreError; what is left to list is kept then.
        """
        while True:
            try:
                self._update(seconds)
            except _DisorderError:
                del self._orders[0]
                self._ranges = [_Range("")]
                continue
            whole = Tally()
            for one in self._ranges:
                whole.include(one.tally)
            return whole.seen()

    def _update(self, seconds: float) -> None:
        self._look += 1
        while self._hinted:
            self._doubt(self._hinted.popleft())
        news = [n for n, one in enumerate(self._ranges[:-1]) if one.stale]
        # From the end, since a range that is cut or empty moves those after it.
        for number in reversed([*news, len(self._ranges) - 1]):
            self._list(number)
        end = time.monotonic() + seconds
        while self._next() and time.monotonic() < end:
            pass

    def _doubt(self, name: str) -> None:
        if name == EVERYTHING:
            for one in self._ranges:
                one.stale = True
        else:
            after = bisect_left(self._ranges, self._order(name), key=self._start)
            self._ranges[max(0, after - 1)].stale = True

    def _next(self) -> bool:
        """List the range whose turn it is; False when this look has listed all."""
        here = bisect_right(self._ranges, self._order(self._cursor), key=self._start) - 1
        for number in (*range(here, len(self._ranges)), *range(here)):
            if self._ranges[number].look != self._look:
                following = self._ranges[number + 1 :]
                self._cursor = following[0].after if following else ""
                self._list(number)
                return True
        return False

    def _list(self, number: int) -> None:
        """List one range anew; one that has grown is cut, one with nothing in it is no more."""
        old = self._ranges[number]
        following = self._ranges[number + 1 :]
        found = self._found(old.after, following[0].after if following else None)
        if number and not found[0].tally.objects:
            found = []
        elif old.look:
            changed = len(found) > 1 or found[0].tally.seen() != old.tally.seen()
            for one in found:
                one.stale = changed
        self._ranges[number : number + 1] = found

    def _found(self, after: str, end: str | None) -> list[_Range]:
        """What is after the one name, up to and with the other."""
        found, last = [self._begun(after)], after
        for item in store().list(self.prefix, after=after):
            name = item.key.removeprefix(self.prefix)
            if self._orders:
                if last and self._order(name) <= self._order(last):
                    raise _DisorderError
                if end is not None and self._order(name) > self._order(end):
                    break
                if found[-1].tally.objects == self.size:
                    found.append(self._begun(last))
            found[-1].tally.add(name, item.size, item.etag)
            last = name
        if len(found) > 1 and found[-1].tally.objects < self.size:
            # Or else a full range would leave a range of one object with each that comes.
            rest = found.pop()
            found[-1].tally.include(rest.tally)
        return found

    def _begun(self, after: str) -> _Range:
        return _Range(after, stale=False, look=self._look)

    def _order(self, name: str) -> str:
        return self._orders[0](name) if self._orders else ""

    def _start(self, one: _Range) -> str:
        return self._order(one.after)
