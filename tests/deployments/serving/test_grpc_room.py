"""Room for what comes: tenants share it, by themselves and in a real server."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
import numpy as np
import pytest

from deployments.serving.grpc_listener import UNREAD_BYTES
from deployments.serving.grpc_room import (
    LEAST,
    MOST,
    ROOM_BYTES,
    Place,
    Room,
    places,
    received,
)
from deployments.serving.http import INLINE_BYTES
from deployments.serving.keys import ApiKey
from deployments.serving.protocol import ProtocolError
from tests.deployments.serving.spoken import (
    HEADERS,
    METHOD,
    WINDOW_UPDATE,
    Raw,
    Spoken,
    Talk,
    message,
    numbers,
    prefixed,
    speaking,
)
from tests.deployments.serving.versions import table_version

LARGEST = ROOM_BYTES // LEAST


def test_places_go_with_the_largest_message() -> None:
    assert places(16_000_000) == 32
    assert (places(10**9), places(1)) == (LEAST, MOST)


async def refused(entering: Coroutine[Any, Any, Place]) -> None:
    with pytest.raises(ProtocolError, match="too many calls: ask again later") as caught:
        await entering
    assert (caught.value.status, caught.value.code) == (429, "overloaded")
    assert caught.value.retry_after


def test_the_tenant_with_the_most_gives_way_until_others_have_as_many() -> None:
    async def story() -> None:
        room, told = Room(4, "calls"), []
        mine = [await room.enter("a", 0) for _ in range(4)]
        for n, place in enumerate(mine):
            place.watch(lambda n=n: told.append(n))
        await refused(room.enter("a", 0))
        theirs = [await room.enter("b", 0) for _ in range(2)]
        assert told == [3, 2]
        assert mine[3].refusal is not None
        await refused(room.enter("b", 0))
        await room.enter("c", 0)
        # Equals: the first of them gave way.
        assert told == [3, 2, 1]
        for place in (mine[0], *theirs):
            room.leave(place)
        # Those that were told and have not left are still the tenant's own.
        await room.enter("a", 0)
        await refused(room.enter("a", 0))
        late: list[int] = []
        mine[2].watch(lambda: late.append(2))
        assert late == [2]
        room.leave(mine[2])
        await room.enter("a", 0)

    asyncio.run(story())


def test_who_waits_gets_what_is_left_fewest_first() -> None:
    async def story() -> None:
        room, came = Room(3, "calls"), []
        held = [await room.enter(key, 0) for key in ("a", "a", "b")]

        async def wait(key: str) -> Place:
            place = await room.enter(key, 60)
            came.append(key)
            return place

        waiting = [asyncio.create_task(wait(key)) for key in ("a", "b", "a", "b")]
        await asyncio.sleep(0)
        waiting[1].cancel()
        room.leave(held[2])
        await waiting[3]
        room.leave(held[0])
        await waiting[0]
        assert came == ["b", "a"]
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        await refused(room.enter("a", 0.001))
        room.close(ProtocolError(503, "the end", "ending"))
        with pytest.raises(ProtocolError, match="the end"):
            await room.enter("c", 0)
        for place in (held[1], waiting[0].result(), waiting[3].result()):
            assert str(place.refusal) == "the end"

    asyncio.run(story())


def test_a_place_that_comes_to_nobody_is_left_again() -> None:
    async def story() -> None:
        room = Room(1, "calls")
        held = await room.enter("a", 0)
        gone = asyncio.create_task(room.enter("b", 60))
        await asyncio.sleep(0)
        room.leave(held)  # it is given, and
        gone.cancel()  # its caller leaves before it is told
        with pytest.raises(asyncio.CancelledError):
            await gone
        await room.enter("c", 0)

    asyncio.run(story())


A = ApiKey(id="a" * 12, tenant="a", scopes=("predict:*",), sha256="0" * 64, created=0)


class Coming:
    """A call whose message comes at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def test_a_large_message_keeps_its_place_until_it_is_answered_or_gives_way() -> None:
    async def story() -> None:
        room = Room(2, "calls")
        small, large = Coming(bytes(INLINE_BYTES)), Coming(bytes(INLINE_BYTES + 1))
        async with received(small, room, 60, A), received(small, room, 60, A):
            for _ in range(2):
                room.leave(await room.enter(A.tenant, 0))
        theirs = []

        async def both() -> Place:
            async with received(large, room, 60, A) as first, received(large, room, 0.001, A):
                assert len(first) == INLINE_BYTES + 1
                await refused(room.enter(A.tenant, 0))
                theirs.append(await room.enter("b", 0))
                return await asyncio.Future[Place]()

        await refused(both())
        for place in (await room.enter(A.tenant, 0), *theirs):
            room.leave(place)

        async def failing() -> None:
            async with received(large, room, 60, A):
                raise TimeoutError("not of the room")

        with pytest.raises(TimeoutError, match="not of the room"):
            await failing()

    asyncio.run(story())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, versions = tmp_path_factory.mktemp("narrow") / "repository", [(table_version(), "1")]
    with speaking(root, versions, "--max-body", str(LARGEST), "--body-seconds", "300") as found:
        yield found


def test_messages_that_are_coming_leave_room_for_other_tenants(narrow: Spoken) -> None:
    keys = [narrow.key("predict:*") for _ in range(8)]
    mine, theirs = keys[0], narrow.key("predict:*", tenant="b")

    def ask(key: dict[str, str]) -> Any:
        return narrow.stub.ModelInfer(message(), metadata=tuple(key.items()))

    calls = []
    for number in range(LEAST):
        call = Raw(narrow.port, METHOD, keys[number % 8])
        call.send(prefixed(LARGEST, bytes(1000)))
        granted = 0
        for kind, stream, content in call.frames():
            granted += int.from_bytes(content) if (kind, stream) == (WINDOW_UPDATE, 1) else 0
            if granted > 10 * UNREAD_BYTES:  # it is read, and may come
                break
        calls.append(call)
    unread = Raw(narrow.port, METHOD, mine)
    unread.send(prefixed(LARGEST, bytes(UNREAD_BYTES - 5)))
    kinds = []
    for kind, stream, content in unread.frames():
        kinds.append((kind, stream))
        if b"too many messages are being received: ask again later" in content:
            break
    assert kinds[-1] == (HEADERS, 1)
    assert (WINDOW_UPDATE, 1) not in kinds
    with pytest.raises(grpc.RpcError) as caught:
        ask(mine)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after", "5") in caught.value.trailing_metadata()
    assert ask(theirs).model_name == "air-time"
    newest = calls.pop()
    words = b"too many messages are being received: ask again later"
    assert any(words in content for _, _, content in newest.frames() if content)
    assert ask(mine).model_name == "air-time"
    for call in [*calls, newest, unread]:
        call.close()


def test_a_large_message_has_raw_contents(narrow: Spoken) -> None:
    rows = 500_000
    values = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    found = narrow.infer("air-time", [numbers(values)]).as_numpy("prediction")
    assert len(found) == rows
    refusal = narrow.refusal(
        message(tensor={"contents": {"int64_contents": [1] * 4_000_000}, "datatype": "INT64"})
    )
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "raw_input_contents take more" in str(refusal.details())
    assert ("modelmint-code", "too_large") in refusal.trailing_metadata()


def test_many_small_messages_of_one_tenant_at_once_are_all_answered(narrow: Spoken) -> None:
    metadata = tuple(narrow.server.bearer.items())
    asked = [narrow.stub.ModelInfer.future(message(), metadata=metadata) for _ in range(12 * LEAST)]
    assert {one.result().model_name for one in asked} == {"air-time"}


def test_streams_leave_room_for_other_tenants(narrow: Spoken) -> None:
    keys = [narrow.key("predict:*") for _ in range(8)]
    mine, theirs = keys[0], narrow.key("predict:*", tenant="b")

    def talk(key: dict[str, str]) -> Talk:
        found = Talk(narrow, key)
        found.ask([[1, 2]])
        assert found.predicted() == [5]
        return found

    talks = [talk(keys[number % 8]) for number in range(LEAST)]
    more = narrow.stub.ModelStreamInfer(iter(()), metadata=tuple(mine.items()))
    assert more.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert more.details() == "too many streams are open: ask again later"
    assert ("retry-after", "5") in more.trailing_metadata()
    talks.append(talk(theirs))
    newest = talks.pop(-2)
    assert "too many streams are open: ask again later" in str(newest.error())
    newest.end()
    for one in talks:
        one.ask([[1, 2]])
        assert one.predicted() == [5]
        assert one.end() == 0
