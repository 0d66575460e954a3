"""What a prefix holds, kept up to date by listing parts of it again.

A store does not tell what changed since its last listing, and to list a million objects takes
minutes. The digest of a listing is a sum (tasks.arrivals), so a prefix is kept as ranges of names
with a sum each. A look lists those in which something may have changed: hinted at, changed when
they were last listed, and the last one, where names with a date in them land. A sweep lists some of
the others in turn, so that each is listed again in a bounded time, whatever hints were lost.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.arrivals import Seen, Tally
from tasks.store import store

RANGE = 10_000
"""Objects of a range when it is cut: ten requests."""
EVERYTHING = ""
MOST = 10_000
"""Hints that are kept; with more, everything is looked at."""
Order = Callable[[str], str]
# Of the names, as S3 lists them, and of the folders in them, as a filer like SeaweedFS does.
ORDERS: tuple[Order, ...] = (str, lambda name: name.replace("/", "\0"))


class _DisorderError(Exception):
    """The store does not list in the order that was presumed."""


class _DoubtError(Exception):
    """A range ended as it would in another order."""


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
        self._hinted: set[str] = set()
        self._cursor = ""
        self._look = 0

    def hint(self, key: str) -> None:
        """The object with that key may have changed; with EVERYTHING, any may have."""
        # The marker of the prefix as a folder has no name below it, and comes before all names.
        name = EVERYTHING if key == EVERYTHING else key.removeprefix(self.prefix) or "\0"
        self._hinted.add(name if len(self._hinted) < MOST else EVERYTHING)

    def look(self) -> Seen:
        """What is there, by this and earlier looks; raises StoreError, and what is left to list
        then is listed by the next.
        """
        while True:
            try:
                self._update()
            except _DisorderError:
                del self._orders[0]
                self._ranges = [_Range("")]
            except _DoubtError:
                self._ranges = [_Range("")]
            else:
                whole = Tally()
                for one in self._ranges:
                    whole.include(one.tally)
                return whole.seen()

    def sweep(self, seconds: float) -> bool:
        """List a range that the last look left out, and more until so many seconds have gone by;
        whether one had changed, which the next look tells. Raises StoreError.
        """
        end = time.monotonic() + seconds
        try:
            while self._next() and time.monotonic() < end:
                pass
        except (_DisorderError, _DoubtError):
            # The next look finds out.
            self.hint(EVERYTHING)
        return bool(self._hinted) or any(one.stale for one in self._ranges)

    def _update(self) -> None:
        self._look += 1
        while self._hinted:
            self._doubt(self._hinted.pop())
        news = [n for n, one in enumerate(self._ranges[:-1]) if one.stale]
        # From the end, since a range that is cut or empty moves those after it.
        for number in reversed([*news, len(self._ranges) - 1]):
            self._list(number)

    def _doubt(self, name: str) -> None:
        if name == EVERYTHING:
            for one in self._ranges:
                one.stale = True
        else:
            # By each order that the store may have.
            for order in self._orders or ORDERS[:1]:
                starts = [order(one.after) for one in self._ranges]
                self._ranges[max(0, bisect_left(starts, order(name)) - 1)].stale = True

    def _next(self) -> bool:
        """List the range whose turn it is; False when all are listed since the last look began."""
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
                    if last != end and any(o(name) <= o(end) for o in self._orders[1:]):
                        # The end is gone, or that order is the store's: a listing of all tells.
                        raise _DoubtError
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
