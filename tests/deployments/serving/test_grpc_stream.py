"""Streams of Triton's own client with a real server: answered as single calls are."""

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deployments.serving.grpc_listener import UNREAD_BYTES
from deployments.serving.grpc_room import Place
from deployments.serving.grpc_stream import MOST_BYTES, MOST_WAITING, Reply, converse
from deployments.serving.ledger import Ledger
from tests.deployments.serving.spoken import (
    DATA,
    HEADERS,
    STREAM,
    Raw,
    Spoken,
    Talk,
    message,
    numbers,
    prefixed,
    speaking,
)
from tests.deployments.serving.versions import slow_version, table_version


def test_answers_are_those_of_single_calls(spoken: Spoken) -> None:
    talk = Talk(spoken)
    asked = [([[n, 1], [n, 2]], version, f"r-{n}") for n in range(60) for version in ("", "2")]
    for values, version, name in asked:
        talk.ask(values, model_version=version, request_id=name, enable_empty_final_response=True)
    for values, version, name in asked:
        found, alone = talk.answer(), spoken.infer("air-time", [numbers(values)], version)
        np.testing.assert_array_equal(found.as_numpy("prediction"), alone.as_numpy("prediction"))
        told, single = found.get_response(), alone.get_response()
        assert (told.id, told.model_version) == (name, single.model_version)
        assert told.outputs == single.outputs
        assert told.parameters["triton_final_response"].bool_param
        assert told.parameters["x-request-id"].string_param == name
        assert told.parameters["modelmint-version"].string_param == (version or "1")
    assert talk.end() == 0


def test_answers_come_in_the_order_of_their_requests(spoken: Spoken) -> None:
    talks = [Talk(spoken) for _ in range(3)]
    for n in range(20):
        for talk in talks:
            talk.ask([[n, 16]], "slow")
            talk.ask([[n, 1]])
    for talk in talks:
        for n in range(20):
            assert talk.predicted() == pytest.approx([(n + 16) / 16])
            assert talk.predicted() == [n + 2]
        assert talk.end() == 0


def test_what_is_asked_before_the_end_is_answered(spoken: Spoken) -> None:
    talk = Talk(spoken)
    for n in range(2 * MOST_WAITING):
        talk.ask([[n, 1]], "slow")
    assert talk.end() == 2 * MOST_WAITING
    assert Talk(spoken).end() == 0


def test_a_revoked_key_ends_its_stream(spoken: Spoken) -> None:
    key = spoken.key("predict:*")
    talk = Talk(spoken, key)
    talk.ask([[1, 2]])
    assert talk.predicted() == [5]
    identity = key["authorization"].split("_")[1]
    assert spoken.server.ask("POST", f"/v1/keys/{identity}/revoke", {}).status == 200
    talk.ask([[1, 2]])
    error = str(talk.error())
    assert "StatusCode.UNAUTHENTICATED" in error
    assert "was revoked" in error
    assert talk.end() == 0
    again = Talk(spoken, key)
    assert "StatusCode.UNAUTHENTICATED" in str(again.error())
    again.end()


class Coming:
    """Messages of one size, as a call gives them, and what is written to it."""

    def __init__(self, count: int, size: int) -> None:
        self._size, self._count = size, count
        self.read_so_far = 0
        self.written: list[bytes] = []

    async def read(self) -> Any:
        if self.read_so_far == self._count:
            return grpc.aio.EOF
        self.read_so_far += 1
        return bytes([self.read_so_far]) * self._size

    async def write(self, body: bytes) -> None:
        self.written.append(body)


@pytest.mark.parametrize(
    ("size", "answer_size", "most"),
    [
        (1, 1, MOST_WAITING),
        (MOST_BYTES // 4, 1, 4),
        (MOST_BYTES // 4 - 1, 1, 5),
        (2 * MOST_BYTES, 1, 1),
        (1, MOST_BYTES // 3, 5),  # the first has none yet, the next four together pass the bound
    ],
)
def test_no_more_is_read_while_answers_wait(size: int, answer_size: int, most: int) -> None:
    async def story() -> None:
        came, first = Coming(100, size), asyncio.Event()

        async def answer(body: bytes) -> Reply:
            if body[0] == 1 or answer_size == 1:
                await first.wait()
            return Reply(body[:1] * answer_size)

        talk = asyncio.create_task(converse(came, Place("a"), lambda: None, answer, 60))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert came.read_so_far == most
        assert came.written == []
        first.set()
        assert await talk is None
        assert [body[0] for body in came.written] == list(range(1, 101))

    asyncio.run(story())


def refusals(spoken: Spoken, code: str) -> float:
    text = spoken.server.ask("GET", "/metrics").body.decode()
    lines = [
        line for line in text.splitlines() if f'modelmint_refusals_total{{code="{code}"' in line
    ]
    return sum(float(line.split()[-1]) for line in lines)


def until(told: Callable[[], bool]) -> None:
    for _ in range(600):
        if told():
            return
        threading.Event().wait(0.05)
    pytest.fail("it did not come to pass")


def test_who_reads_no_answers_is_not_read_from_and_cut_off(spoken: Spoken) -> None:
    before, key = refusals(spoken, "timeout"), spoken.key("predict:*")
    body = message().SerializeToString()
    many = UNREAD_BYTES // len(prefixed(len(body), body))
    call = Raw(spoken.port, STREAM, key)
    call.send(prefixed(len(body), body) * many)
    until(lambda: refusals(spoken, "timeout") == before + 1)
    call.widen()
    answers, ended = b"", b""
    for kind, _, content in call.frames():
        answers += content if kind == DATA else b""
        if kind == HEADERS and answers:
            ended = content
            break
    call.close()
    assert b"an answer was not read in time" in ended
    written = answers.count(b"triton_final_response")
    usage = spoken.server.ask("GET", "/v1/usage").json["usage"]
    identity = key["authorization"].split("_")[1]
    [computed] = [one["rows"] for one in usage if one["key"] == identity and one["line"]]
    # A window of 65,535 bytes was full; what came after it was computed, and no more read.
    assert written <= computed <= written + MOST_WAITING < many - MOST_WAITING


def test_damaged_and_abandoned_streams_leave_the_server_well(spoken: Spoken) -> None:
    random, whole = np.random.default_rng(7), message(id="x").SerializeToString()
    call = spoken.channel.stream_stream(STREAM)
    metadata = tuple(spoken.server.bearer.items())
    for one in range(60):
        bodies = []
        for _ in range(5):
            body = bytearray(whole)
            for at in random.integers(0, len(body), random.integers(1, 4)):
                body[at] = random.integers(0, 256)
            bodies.append(bytes(body))
        came = call(iter(bodies), metadata=metadata)
        for _ in range(one % 7):  # six is one more than there are
            if next(came, None) is None:
                assert came.code() == grpc.StatusCode.OK
        came.cancel()
    talk = Talk(spoken)
    for n in range(50):
        talk.ask([[n, 1]], "slow")
    talk.answer()
    talk.end(cancel=True)
    assert spoken.infer("air-time", [numbers([[1, 2]])]).as_numpy("prediction") == [5]
    assert "Traceback" not in spoken.server.log


def test_a_stream_ends_with_its_server_and_what_was_read_is_answered(tmp_path: Path) -> None:
    with speaking(tmp_path / "repository", [(slow_version(), "1")]) as spoken:
        idle, talk = Talk(spoken), Talk(spoken, key := spoken.key("predict:*"))
        for n in range(2 * MOST_WAITING):
            talk.ask([[n, 16]], "slow")
        answers = talk.predicted()
        assert spoken.server.stop() == 0
        for one in (idle, talk):
            found, ending = one.rest()
            answers += found
            assert "StatusCode.UNAVAILABLE" in ending
            assert "the server ends: start another stream" in ending
        assert answers == pytest.approx([(n + 16) / 16 for n in range(len(answers))])
        usage = Ledger(spoken.server.root / ".server" / "usage").usage(1)
        identity = key["authorization"].split("_")[1]
        [charged] = [one["rows"] for one in usage if one["key"] == identity]
        assert charged == len(answers)


def test_a_silent_stream_is_ended(tmp_path: Path) -> None:
    soon = "from deployments.serving import __main__, grpc_listener as l; l.IDLE_SECONDS = 1"
    command = (sys.executable, "-c", f"{soon}; __main__.main()")
    with speaking(tmp_path / "repository", [(table_version(), "1")], command=command) as spoken:
        never, once = Talk(spoken), Talk(spoken)
        once.ask([[1, 2]])
        assert once.predicted() == [5]
        for talk in (never, once):
            error = str(talk.error())
            assert "StatusCode.DEADLINE_EXCEEDED" in error
            assert "no request came for 1 s: start another stream" in error
            assert talk.end() == 0
