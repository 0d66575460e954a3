"""Room for messages: for each while it comes, for a large one until it is answered.

gRPC tells nothing of a message before all of it has come, so each that is waited for is counted
with all it may have. Of one that nobody waits for, `grpc_listener.UNREAD_BYTES` come at most.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc.aio

from deployments.serving.http import INLINE_BYTES
from deployments.serving.keys import ApiKey
from deployments.serving.protocol import ProtocolError

ROOM_BYTES = 512_000_000
"""What messages that come, and large ones until they are answered, may take in a worker process;
streams that wait for one may take as much again."""
LEAST, MOST = 16, 256
"""Bounds of the places that make; calls that wait for none must find some of `MOST_CALLS`."""
WAIT_SECONDS = 5.0
"""Until a call is refused that finds no room; and when it may ask again."""


def places(largest: int) -> int:
    """How many messages of up to `largest` bytes there is room for."""
    return min(MOST, max(LEAST, ROOM_BYTES // largest))


class Place:
    """Room for one message of a tenant, until that `leave`s or is told to, by `refusal`."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.refusal: ProtocolError | None = None
        self._told: Callable[[], object] | None = None

    def watch(self, told: Callable[[], object]) -> None:
        """Have `told` called when the place is to be left, at once if it already is."""
        self._told = told
        if self.refusal is not None:
            told()

    def take_back(self, refusal: ProtocolError) -> None:
        """Tell whoever has it to leave."""
        self.refusal = refusal
        if self._told is not None:
            self._told()


class Room:
    """The places of one worker process, for its event loop.

    A tenant may have all of them. When others come, the newest of the tenant with the most gives
    way until they have as many; what was told to leave and does not counts for its tenant alone.
    """

    def __init__(self, places: int, what: str) -> None:
        self._places, self._what = places, what
        self._tenants: dict[str, _Tenant] = {}
        self._taken = 0
        self._closed: ProtocolError | None = None

    async def enter(self, tenant: str, seconds: float) -> Place:
        """A place, awaited for up to so many seconds; raises ProtocolError 429.

        Whoever gets one leaves it again.
        """
        if self._closed is not None:
            raise self._closed
        mine = self._tenants.setdefault(tenant, _Tenant())
        place = self._admit(tenant) if mine.first() is None else None
        if place is not None:
            return place
        answer: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        mine.waiting.append(answer)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except BaseException as error:
            if not answer.cancelled():  # it came when nobody waited any more
                self.leave(answer.result())
            self._forget(tenant)
            if isinstance(error, TimeoutError):
                raise self._full() from None
            raise

    def leave(self, place: Place) -> None:
        """Give it to one that waits, of the tenant that has the fewest."""
        mine = self._tenants[place.tenant]
        mine.inside -= 1
        if place in mine.held:
            mine.held.remove(place)
            self._taken -= 1
        for tenant in sorted(self._tenants, key=lambda name: len(self._tenants[name].held)):
            answer = self._tenants[tenant].first()
            if answer is not None and (given := self._admit(tenant)) is not None:
                self._tenants[tenant].waiting.popleft()
                answer.set_result(given)
                break
        self._forget(place.tenant)

    def close(self, refusal: ProtocolError) -> None:
        """Have everybody leave, and let nobody in."""
        self._closed = refusal
        for one in self._tenants.values():
            for place in one.held:
                place.take_back(refusal)

    def _admit(self, tenant: str) -> Place | None:
        mine = self._tenants[tenant]
        if mine.inside >= self._places:
            return None
        if self._taken >= self._places:
            theirs = max((one.held for one in self._tenants.values()), key=len)
            if len(theirs) <= len(mine.held) + 1:
                return None
            self._taken -= 1
            theirs.pop().take_back(self._full())
        place = Place(tenant)
        mine.held.append(place)
        mine.inside += 1
        self._taken += 1
        return place

    def _forget(self, tenant: str) -> None:
        mine = self._tenants.get(tenant)
        if mine is not None and not mine.inside and mine.first() is None:
            del self._tenants[tenant]

    def _full(self) -> ProtocolError:
        return ProtocolError(
            429, f"too many {self._what}: ask again later", "overloaded", retry_after=WAIT_SECONDS
        )


class _Tenant:
    """What a tenant has: places, newest last; calls inside, also such as were told to leave."""

    def __init__(self) -> None:
        self.held: list[Place] = []
        self.inside = 0
        self.waiting: deque[asyncio.Future[Place]] = deque()

    def first(self) -> "asyncio.Future[Place] | None":
        """Who waits the longest and still does."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


@asynccontextmanager
async def received(context: Any, room: Room, seconds: float, key: ApiKey) -> AsyncIterator[bytes]:
    """The message of a call, that must come within `seconds`; a large one has its place until the
    end.

    Raises ProtocolError: 400 where there is none, 408, 429 where there is no room, also later than
    that, when others came who have less.
    """
    place = await room.enter(key.tenant, WAIT_SECONDS)
    try:
        async with _until_told(place, seconds):
            body = await context.read()
        if body is grpc.aio.EOF:
            raise ProtocolError(400, "the call has no message")
        if len(body) > INLINE_BYTES:
            async with _until_told(place, None):
                yield bytes(body)
            return
    finally:
        room.leave(place)
    yield bytes(body)


@asynccontextmanager
async def _until_told(place: Place, seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as bound:
            place.watch(partial(_hurry, bound))
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        late = ProtocolError(408, "the message did not arrive in time", "timeout")
        raise place.refusal or late from None


def _hurry(bound: asyncio.Timeout) -> None:
    if not bound.expired():
        bound.reschedule(0)
