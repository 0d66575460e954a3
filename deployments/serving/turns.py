"""Whose turn it is: tenants in turns, the keys of each in turns, first come first served for a key.

What waits is bounded, by number and by bytes. Where there is no room, the tenant that takes most of
what is short gives way, be it places or bytes, and of its keys the one that takes most, with its
newest request (fair queuing, Nagle, RFC 970). What is dropped is let go of at once, with the bytes
it holds.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from deployments.serving.protocol import ProtocolError

MOST_QUEUED = 1024
"""Requests that may wait in one place."""
QUEUED_BYTES = 128_000_000
"""Bytes of requests that may wait in one place; a single request may be larger."""
Who = tuple[str, str]
"""A tenant, and the id of one of its keys."""


@dataclass(slots=True, eq=False)
class Turn:
    """A request whose turn will come."""

    who: Who
    size: int
    """Bytes it holds."""
    until: float
    """When its answer is due."""
    admitted: bool = field(default=False, kw_only=True)
    """Whether it is the rest of a request that was let in before: it never gives way."""


T = TypeVar("T", bound=Turn)


class Refused(NamedTuple, Generic[T]):
    """Whom to tell that its turn will not come, and why."""

    turn: T
    error: ProtocolError


class Turns(Generic[T]):
    """The requests that wait for `what`, as in "too many requests wait ..."; not thread-safe."""

    def __init__(self, what: str) -> None:
        self.length = 0
        """How many wait."""
        self._what = what
        self._bytes = 0
        self._tenants: OrderedDict[str, _Tenant[T]] = OrderedDict()

    def put(self, one: T, now: float, pace: float, held: int = 0) -> list[Refused[T]]:
        """Let a request wait; those that shall not any more, of which it may be one itself.

        `now` is in the time of `until`. A turn comes about every `pace` seconds; `held` bytes count
        though what holds them does not wait here.
        """
        if one.admitted or self._room(one, held):
            self._add(one)
            return []
        late = [turn for turn in self._waiting() if turn.until <= now]
        for turn in late:
            self.drop(turn)
        given_up: list[Refused[T]] = []
        while not self._room(one, held):
            refusal = ProtocolError(
                429,
                f"too many requests wait {self._what}: ask again later",
                "overloaded",
                retry_after=math.ceil(self.length * pace),
            )
            other = self._giving_way(one)
            if other is None:
                # Nobody gives way for one that does not fit all the same.
                for before in reversed(given_up):
                    self._add(before.turn)
                given_up = [Refused(one, refusal)]
                break
            self.drop(other)
            given_up.append(Refused(other, refusal))
        else:
            self._add(one)
        return [*(Refused(turn, overdue()) for turn in late), *given_up]

    def take(self, fits: Callable[[T], bool] = lambda _: True) -> Iterator[T]:
        """The next requests, one of each tenant in turn; nothing may be put in between.

        One that does not fit stays, and so do those of its key behind it: it would not fit after
        more were taken either. Whose request is taken goes to the end of the line.
        """
        left: Iterable[tuple[str, Iterator[T]]] = (
            (name, tenant.take(fits)) for name, tenant in list(self._tenants.items())
        )
        while left:
            again = []
            for name, turn in left:
                for one in turn:
                    self.length -= 1
                    self._bytes -= one.size
                    if self._tenants[name].count:
                        self._tenants.move_to_end(name)
                        again.append((name, turn))
                    else:
                        del self._tenants[name]
                    yield one
                    break
            left = again

    def drop(self, one: T) -> None:
        """Forget a request, if it waits."""
        name, _ = one.who
        tenant = self._tenants.get(name)
        if tenant is None or not tenant.drop(one):
            return
        self.length -= 1
        self._bytes -= one.size
        if not tenant.count:
            del self._tenants[name]

    def clear(self) -> list[T]:
        """Forget all of them; they."""
        left = list(self._waiting())
        self._tenants.clear()
        self.length = self._bytes = 0
        return left

    def _add(self, one: T) -> None:
        name, _ = one.who
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant()
        tenant.add(one)
        self.length += 1
        self._bytes += one.size

    def _waiting(self) -> Iterator[T]:
        for tenant in self._tenants.values():
            for asked in tenant.keys.values():
                yield from asked

    def _room(self, one: T, held: int) -> bool:
        held += self._bytes
        light = not held or not one.size or held + one.size <= QUEUED_BYTES
        return light and self.length < MOST_QUEUED

    def _giving_way(self, one: T) -> T | None:
        """Whose turn is given up: who gives it has more even then than this one would have."""
        places = self.length >= MOST_QUEUED
        more = 1 if places else one.size

        def weight(whose: "_Tenant[T] | Collection[T]") -> int:
            if isinstance(whose, _Tenant):
                return whose.count if places else whose.size
            return len(whose) if places else sum(other.size for other in whose)

        name, key = one.who
        mine: _Tenant[T] = self._tenants.get(name) or _Tenant()
        nothing: OrderedDict[T, None] = OrderedDict()
        # Of equals the one whose turn is last.
        most = max(reversed(self._tenants.values()), key=weight, default=mine)
        theirs = weight(most) > weight(mine) + more
        keys = most.keys if theirs else mine.keys
        asked = max(reversed(keys.values()), key=weight, default=nothing)
        if not theirs and weight(asked) <= weight(keys.get(key, nothing)) + more:
            return None
        short = (other for other in reversed(asked) if places or other.size)
        return next((other for other in short if not other.admitted), None)


@dataclass(slots=True)
class _Tenant(Generic[T]):
    """What waits of a tenant, by key."""

    count: int = 0
    size: int = 0
    keys: OrderedDict[str, OrderedDict[T, None]] = field(default_factory=OrderedDict)

    def add(self, one: T) -> None:
        _, key = one.who
        asked = self.keys.get(key)
        if asked is None:
            asked = self.keys[key] = OrderedDict()
        asked[one] = None
        self.count += 1
        self.size += one.size

    def drop(self, one: T) -> bool:
        """Whether it was here."""
        _, key = one.who
        asked = self.keys.get(key)
        if asked is None or one not in asked:
            return False
        del asked[one]
        if not asked:
            del self.keys[key]
        self.count -= 1
        self.size -= one.size
        return True

    def take(self, fits: Callable[[T], bool]) -> Iterator[T]:
        """The requests that fit, one of each key in turn."""
        left = list(self.keys)
        while left:
            again = []
            for key in left:
                asked = self.keys[key]
                one = next(iter(asked))
                if fits(one):
                    if len(asked) > 1:
                        self.keys.move_to_end(key)
                        again.append(key)
                    self.drop(one)
                    yield one
            left = again


def overdue() -> ProtocolError:
    """What a request is told whose deadline passed."""
    return ProtocolError(504, "the deadline passed before the answer", "deadline")
