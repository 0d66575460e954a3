"""Batching over real sessions, held where a test needs the moment to be certain."""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.serving import turns
from deployments.serving.access import Access
from deployments.serving.batching import Batching
from deployments.serving.inference import Call, Inference, Settings
from deployments.serving.keys import EVERYTHING
from deployments.serving.ledger import Ledger
from deployments.serving.protocol import ProtocolError, Tensors
from deployments.serving.session import Served, open_version


class Held:
    """A session that computes when it is let go, and remembers the rows it was given."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.go = threading.Event()
        self.rows: list[list[float]] = []

    def run(self, names: list[str], feeds: Tensors) -> Any:
        assert self.go.wait(30)
        self.rows.append([float(row[0]) for row in feeds["numbers"]])
        return self._session.run(names, feeds)


def opened(version: Any, most: int = 64) -> tuple[Served, Held]:
    served = open_version(version.line, "1", version.digest, version.files)
    held = Held(served.session)
    return replace(served, session=held, inline_rows=0, batch_rows=most), held


def row(value: float, rows: int = 1) -> Tensors:
    return {"numbers": np.full((rows, 2), value, np.float32)}


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


Story = Callable[[Batching, Served, Held], Coroutine[Any, Any, None]]


@pytest.fixture
def play(table: Any) -> Callable[..., None]:
    """Runs a story in which one thread computes `prediction = 3 x` for rows of x."""

    def run(story: Story, most: int = 64) -> None:
        served, held = opened(table(), most)
        try:
            asyncio.run(story(Batching(1), served, held))
        finally:
            held.go.set()

    return run


def ask(
    line: Batching, served: Served, value: float, key: str = "a", rows: int = 1, seconds: float = 30
) -> "asyncio.Task[Tensors]":
    due = asyncio.get_running_loop().time() + seconds
    return asyncio.create_task(line.run(served, row(value, rows), rows, (key, key), due))


def test_the_first_runs_at_once_and_the_others_gather(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        asked = [ask(line, served, value, rows=1 + value % 3) for value in range(20)]
        await settled()
        held.go.set()
        for value, found in enumerate(await asyncio.gather(*asked)):
            expected = np.full(1 + value % 3, 3 * value, np.float32)
            np.testing.assert_array_equal(found["prediction"], expected)
        assert [len(rows) for rows in held.rows] == [1, 39 - 1]

    play(story)


def test_a_batch_is_bounded_and_a_large_request_goes_alone(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        asked = [ask(line, served, 1), ask(line, served, 2, rows=9)]
        asked += [ask(line, served, value) for value in (3, 4, 5, 6, 7)]
        await settled()
        held.go.set()
        await asyncio.gather(*asked)
        assert held.rows == [[1], [2] * 9, [3, 4, 5, 6], [7]]

    play(story, most=4)


def test_many_rows_are_computed_in_turns_with_others_between_them(
    table: Any, tmp_path: Path
) -> None:
    served, held = opened(table())
    served = replace(served, turn_rows=4)
    inference = Inference(Ledger(tmp_path), Settings(slots=1))
    keys = [Access(tmp_path).keys.create("t", EVERYTHING)[0] for _ in range(2)]

    async def story() -> None:
        due = asyncio.get_running_loop().time() + 30
        many = Call(keys[0], served, 0, due)
        rows = {"numbers": np.arange(10, dtype=np.float32).repeat(2).reshape(10, 2)}
        first = asyncio.create_task(inference.run(many, rows))
        await settled()
        second = asyncio.create_task(inference.run(Call(keys[1], served, 0, due), row(70.0)))
        await settled()
        held.go.set()
        found, other = await first, await second
        assert found.outputs["prediction"].tolist() == [3.0 * value for value in range(10)]
        assert other.outputs["prediction"].tolist() == [210.0]

    try:
        asyncio.run(story())
    finally:
        held.go.set()
    assert held.rows[0] == [0, 1, 2, 3]
    # Whoever came meanwhile did not wait for all ten.
    assert [70.0] in (held.rows[1][-1:], held.rows[1][:1])
    assert max(map(len, held.rows)) <= 5
    # Where nobody takes turns, memory is bounded all the same.
    held.rows.clear()
    served.run(row(1.0, 10))
    assert [len(rows) for rows in held.rows] == [4, 4, 2]


def test_a_request_in_turns_counts_with_all_its_bytes_until_its_end(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUEUED_BYTES", 100)

    async def story(line: Batching, served: Served, held: Held) -> None:
        served = replace(served, turn_rows=4)
        first = ask(line, served, 1.0, rows=12)  # 96 bytes
        await settled()
        other = ask(line, served, 2.0, key="b", rows=1)
        held.go.set()
        await other
        held.go.clear()
        with pytest.raises(ProtocolError) as refused:
            # Its first turn is over, the others are not.
            await ask(line, served, 3.0, key="c", rows=1)
        assert refused.value.code == "overloaded"
        held.go.set()
        assert len((await first)["prediction"]) == 12
        assert len((await ask(line, served, 3.0, key="c", rows=3))["prediction"]) == 3

    play(story)


def test_keys_take_turns(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        asked = [ask(line, served, value, "greedy") for value in range(6)]
        asked += [ask(line, served, 100 + value, "modest") for value in range(2)]
        await settled()
        held.go.set()
        await asyncio.gather(*asked)
        assert held.rows == [[0], [1, 100], [2, 101], [3, 4], [5]]

    play(story, most=2)


def test_a_tenant_with_many_keys_has_one_turn(table: Any, tmp_path: Path) -> None:
    served, held = opened(table(), most=2)
    inference = Inference(Ledger(tmp_path), Settings(slots=1))
    made = Access(tmp_path).keys.create
    many = [made("many", EVERYTHING)[0] for _ in range(3)]
    [one] = [made("one", EVERYTHING)[0]]

    async def story() -> None:
        due = asyncio.get_running_loop().time() + 30
        asked = [(key, value) for value, key in enumerate((*many, *many))]
        asked += [(one, 100), (one, 101)]
        calls = [inference.run(Call(key, served, 0, due), row(value)) for key, value in asked]
        tasks = [asyncio.create_task(call) for call in calls]
        await settled()
        held.go.set()
        await asyncio.gather(*tasks)

    try:
        asyncio.run(story())
    finally:
        held.go.set()
    assert [sorted(rows)[1:] for rows in held.rows[1:3]] == [[100], [101]]


def test_versions_take_turns(table: Any) -> None:
    order: list[str] = []

    async def story() -> None:
        line, helds, asked = Batching(1), [], []
        for name in ("first", "second"):
            served, held = opened(table(line=name), most=1)
            helds.append(held)
            for _ in range(3):
                task = ask(line, served, 1)
                task.add_done_callback(lambda _, name=name: order.append(name))
                asked.append(task)
        await settled()
        for held in helds:
            held.go.set()
        await asyncio.gather(*asked)

    asyncio.run(story())
    assert order == ["first", "first", "second", "first", "second", "second"]


def test_a_full_queue_refuses_whoever_asks_most(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_QUEUED", 4)

    async def story(line: Batching, served: Served, held: Held) -> None:
        greedy = [ask(line, served, value, "greedy") for value in range(6)]
        await settled()
        with pytest.raises(ProtocolError) as refused:
            await greedy[5]
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
        assert refused.value.retry_after is not None
        # Who asks little is let in; the newest request of who asks most gives way.
        modest = [ask(line, served, 100, "modest"), ask(line, served, 101, "modest")]
        await settled()
        for given_up in (greedy[4], greedy[3]):
            with pytest.raises(ProtocolError, match="too many"):
                await given_up
        with pytest.raises(ProtocolError, match="too many"):
            await ask(line, served, 102, "modest")
        held.go.set()
        await asyncio.gather(*greedy[:3], *modest)
        assert held.rows == [[0], [1, 100, 2, 101]]

    play(story)


def test_waiting_tensors_are_bounded_by_their_bytes(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUEUED_BYTES", 100)

    async def story(line: Batching, served: Served, held: Held) -> None:
        asked = [ask(line, served, 1), ask(line, served, 2, rows=10)]
        await settled()
        with pytest.raises(ProtocolError, match="too many"):
            await ask(line, served, 3, rows=4)
        held.go.set()
        await asyncio.gather(*asked)
        await ask(line, served, 4, rows=1000)  # however large: nothing else waits

    play(story)


def test_what_expires_is_answered_then_and_never_computed(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        first, late = ask(line, served, 1), ask(line, served, 2, seconds=0.01)
        patient = ask(line, served, 3)
        with pytest.raises(ProtocolError) as refused:
            await late
        assert (refused.value.status, refused.value.code) == (504, "deadline")
        assert not first.done()
        held.go.set()
        await asyncio.gather(first, patient)
        assert held.rows == [[1], [3]]

    play(story)


def test_expired_requests_make_room(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_QUEUED", 2)

    async def story(line: Batching, served: Served, held: Held) -> None:
        first = ask(line, served, 1)
        late = [ask(line, served, 2, seconds=0.01) for _ in range(2)]
        assert len(await asyncio.gather(*late, return_exceptions=True)) == 2
        patient = ask(line, served, 3)
        await settled()
        held.go.set()
        await asyncio.gather(first, patient)
        assert held.rows == [[1], [3]]

    play(story)


def test_values_the_network_refuses_fail_nobody_else(lookup: Any) -> None:
    version = lookup()
    served = open_version(version.line, "1", version.digest, version.files)
    served = replace(served, inline_rows=0, batch_rows=64)

    async def story() -> list[Any]:
        line = Batching(1)
        due = asyncio.get_running_loop().time() + 30
        rows = [{"categories": np.array([[index]], np.int64)} for index in (0, 1, 9, 2)]
        asked = [line.run(served, tensors, 1, ("a", "a"), due) for tensors in rows]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(story())
    assert [float(one["prediction"][0]) for one in (found[0], found[1], found[3])] == [10, 20, 30]
    assert isinstance(found[2], ProtocolError)
    assert found[2].status == 400


def test_a_server_batches_what_many_callers_send(batched: Any, talk: Any) -> None:
    def ask(number: int) -> list[float]:
        connection, found = batched.connect(), []
        for step in range(20):
            values = [number * 1000.0, step * 16.0]
            one = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": values}
            path = "/v2/models/uncached/infer"
            answer = talk(connection, "POST", path, {"inputs": [one]}, **batched.bearer)
            assert answer.status == 200
            found.append(answer.json["outputs"][0]["data"][0] - values[0] / 16)
        connection.close()
        return found

    with ThreadPoolExecutor(16) as callers:
        for found in callers.map(ask, range(16)):
            np.testing.assert_allclose(found, np.arange(20), atol=1e-3)
    text = batched.ask("GET", "/metrics").body.decode()
    name = 'modelmint_batch_rows_%s{line="uncached",version="1"} '
    (rows,) = re.findall(re.escape(name % "sum") + r"(\d+)", text)
    (batches,) = re.findall(re.escape(name % "count") + r"(\d+)", text)
    assert int(rows) == 320
    assert int(batches) < 320


def test_those_who_were_answered_together_are_waited_for(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        served = replace(served, pause_seconds=60.0)
        held.go.set()
        await asyncio.gather(*(ask(line, served, value) for value in range(5)))
        assert [len(rows) for rows in held.rows] == [1, 4]
        asked = [ask(line, served, value) for value in range(3)]
        await settled()
        await asyncio.sleep(0.05)
        assert len(held.rows) == 2
        asked.append(ask(line, served, 3))
        await asyncio.gather(*asked)
        assert held.rows[2:] == [[0, 1, 2, 3]]

    play(story)


def test_they_are_waited_for_no_longer_than_it_pays(play: Any) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        served = replace(served, pause_seconds=0.001)
        held.go.set()
        await asyncio.gather(*(ask(line, served, value) for value in range(5)))
        await ask(line, served, 7)
        await ask(line, served, 8)
        assert held.rows[2:] == [[7], [8]]

    play(story)


def test_a_timer_that_is_early_leaves_nobody_waiting(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(line: Batching, served: Served, held: Held) -> None:
        loop = asyncio.get_running_loop()
        served = replace(served, pause_seconds=3600.0)
        held.go.set()
        await asyncio.gather(*(ask(line, served, value) for value in range(5)))
        with monkeypatch.context() as early:
            early.setattr(loop, "call_later", lambda _, *what: loop.call_soon(*what))
            waiting = ask(line, served, 7)
            await settled()
        await waiting
        assert held.rows[2:] == [[7]]

    play(story)
