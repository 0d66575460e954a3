"""Whatever a file does to its decoder, its sender is refused and everybody else is answered."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from deployments.serving.access import Access
from deployments.serving.decoder import Limits
from deployments.serving.decoding import Decoders
from deployments.serving.inference import Call, Inference, Settings
from deployments.serving.keys import EVERYTHING
from deployments.serving.ledger import Ledger
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import open_version
from deployments.serving.turns import MOST_QUEUED, QUEUED_BYTES
from models.signature import SIGNATURE_FILE
from tests.deployments.serving.test_control import eventually

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
PREDICT = "/v1/lines/air-time/predict"
RECORD = {"distance": 3, "hour": 4}


@pytest.fixture(scope="module")
def hostile(
    tmp_path_factory: pytest.TempPathFactory, serve: Any, table: Any, sealed: Any
) -> Iterator[Any]:
    """A server of `air-time` 1, whose decoder does as it is told."""
    root = tmp_path_factory.mktemp("hostile") / "repository"
    files = dict(table().files)
    theirs = b"tests.deployments.serving.hostile:HostileFeatures"
    files[SIGNATURE_FILE] = files[SIGNATURE_FILE].replace(b"models.tables:TableFeatures", theirs)
    assert theirs in files[SIGNATURE_FILE]
    kept = ("model.onnx", SIGNATURE_FILE, "sample.safetensors")
    version = sealed("air-time", {name: files[name] for name in kept})
    version.place(root, "1")
    released = {"HOSTILE_RELEASE": str(root.parent / "released")}
    server = serve(root, "--decode-seconds", "1", environment=released)
    try:
        assert server.load(version, "1").status == 200
        assert server.promote("air-time", "1").status == 200
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(autouse=True)
def healthy(hostile: Any) -> Iterator[None]:
    """The same process answers before and after, tensors and records."""
    before = psutil.Process(hostile.process.pid).create_time()
    yield
    assert hostile.ask("POST", INFER, GOOD).status == 200
    assert hostile.ask("POST", PREDICT, RECORD).json["predictions"][0]["air_time"] == 11.0
    assert psutil.Process(hostile.process.pid).create_time() == before
    assert "Traceback" not in hostile.log


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (b"crash", "undecodable", "cannot be done"),
        (b"abort", "undecodable", "cannot be done"),
        (b"spin", "undecodable", "takes too long"),
        (b"lie", "undecodable", ""),
        (b"memory", "refused_request", "more memory"),
        (b"surprise", "undecodable", "cannot be decoded"),
    ],
)
def test_what_breaks_a_decoder_is_refused(
    hostile: Any, payload: bytes, code: str, words: str
) -> None:
    answer = hostile.ask("POST", PREDICT, payload, x_request_id="mine")
    assert (answer.status, answer.json["code"]) == (400, code)
    assert words in answer.json["error"]
    assert answer.json["request_id"] == "mine"
    assert "secret" not in hostile.log


def test_others_are_answered_while_decoders_are_busy(hostile: Any) -> None:
    released = hostile.root.parent / "released"
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(hostile.ask, "POST", PREDICT, b"wait") for _ in range(2)]
        try:
            answers = [hostile.ask("POST", INFER, GOOD).status for _ in range(20)]
            late = hostile.ask("POST", PREDICT, RECORD, modelmint_timeout_ms="300")
            assert not any(one.done() for one in busy)
            assert answers == [200] * 20
            assert late.status == 504
        finally:
            released.touch()
        assert {one.result().status for one in busy} == {400}
    released.unlink()


def test_a_decoder_the_kernel_ended_while_it_was_idle_costs_nobody_anything(hostile: Any) -> None:
    assert hostile.ask("POST", PREDICT, RECORD).status == 200
    for decoder in hostile.decoders():
        decoder.kill()
        psutil.wait_procs([decoder], timeout=30)
    assert hostile.ask("POST", PREDICT, RECORD).status == 200


def test_a_decoder_that_does_not_answer_ends_with_the_deadline(hostile: Any) -> None:
    def decoders() -> int:
        tree = psutil.Process(hostile.process.pid).children(recursive=True)
        return len([one for one in tree if one.status() != psutil.STATUS_ZOMBIE])

    hostile.ask("POST", PREDICT, RECORD)
    before = decoders()
    answer = hostile.ask("POST", PREDICT, b"sleep", modelmint_timeout_ms="200")
    assert (answer.status, answer.json["code"]) == (504, "deadline")
    assert eventually(lambda: decoders() < before)


def test_decoders_end_with_a_worker_that_is_killed(start: Any, table: Any, tmp_path: Any) -> None:
    root = tmp_path / "repository"
    table().place(root, "1")
    server = start(root)
    server.load(table(), "1")
    server.promote("air-time", "1")
    assert server.ask("POST", PREDICT, RECORD).status == 200
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    server.process.kill()
    server.process.wait()
    assert eventually(lambda: not any(one.is_running() for one in children))


class Reading(NamedTuple):
    """Reads that wait until they are let go, and in which order they ended."""

    begun: threading.Event
    go: threading.Event
    order: list[bytes]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    found = Reading(threading.Event(), threading.Event(), [])

    def read(_: Any, served: Any, payload: bytes, *given: Any) -> Any:
        found.begun.set()
        assert found.go.wait(30)
        found.order.append(payload)
        return {}, 1

    monkeypatch.setattr(Decoders, "_read", read)
    return found


def test_keys_take_turns(reading: Reading) -> None:
    begun, go, order = reading
    decoders = Decoders(Limits(decoders=1))
    served: Any = None
    asked = [decoders.read(served, b"first", "", 30, ("greedy", ""))]
    assert begun.wait(30)
    asked += [decoders.read(served, b"%d" % at, "", 30, ("greedy", "")) for at in range(3)]
    asked += [decoders.read(served, b"modest", "", 30, ("modest", ""))]
    go.set()
    for one in asked:
        one.result(30)
    decoders.close()
    assert order == [b"first", b"0", b"modest", b"1", b"2"]


def test_a_tenant_with_many_keys_has_one_turn(reading: Reading, table: Any, tmp_path: Path) -> None:
    begun, go, order = reading
    version = table()
    served = open_version(version.line, "1", version.digest, version.files)
    inference = Inference(Ledger(tmp_path), Settings(limits=Limits(decoders=1)))
    made = Access(tmp_path).keys.create
    many = [made("many", EVERYTHING)[0] for _ in range(2)]
    one = made("one", EVERYTHING)[0]

    async def story() -> None:
        due = asyncio.get_running_loop().time() + 30
        asked = [(many[0], b"first"), (many[0], b"a"), (many[1], b"b"), (one, b"modest")]
        calls = [inference.read(Call(key, served, 0, due), payload, "") for key, payload in asked]
        tasks = [asyncio.create_task(calls[0])]
        assert await asyncio.to_thread(begun.wait, 30)
        tasks += [asyncio.create_task(call) for call in calls[1:]]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)

    try:
        asyncio.run(story())
    finally:
        go.set()
        inference.decoders.close()
    assert order == [b"first", b"a", b"modest", b"b"]


class Payload(bytearray):
    """Bytes of which it can be seen whether anybody holds them."""


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Decoders, threading.Event]]:
    """One decoder that is at its first request until it is let go."""
    begun, go = threading.Event(), threading.Event()

    def read(_: Any, served: Any, payload: bytes, *given: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return {}, len(payload)

    monkeypatch.setattr(Decoders, "_read", read)
    decoders = Decoders(Limits(decoders=1))
    served: Any = None
    first = decoders.read(served, b"", "", 30, ("first", ""))
    assert begun.wait(30)
    yield decoders, go
    go.set()
    first.result(30)
    decoders.close()


def test_what_waits_is_bounded_and_a_modest_key_is_served(stuck: Any) -> None:
    decoders, go = stuck
    served: Any = None
    asked = [decoders.read(served, b"x", "", 30, ("greedy", "")) for _ in range(5000)]
    waiting = [one for one in asked if not one.done()]
    assert len(waiting) == MOST_QUEUED
    refusal = asked[-1].exception(0)
    assert isinstance(refusal, ProtocolError)
    assert (refusal.status, refusal.code) == (429, "overloaded")
    assert refusal.retry_after is not None
    modest = decoders.read(served, b"four", "", 30, ("modest", ""))
    assert sum(not one.done() for one in asked) == MOST_QUEUED - 1
    go.set()
    assert modest.result(30) == ({}, 4)
    answered = [one.result(30) for one in waiting[:-1]]
    assert answered == [({}, 1)] * (MOST_QUEUED - 1)


def test_bytes_that_wait_are_bounded_and_given_back_when_nobody_waits_for_them(stuck: Any) -> None:
    decoders, _ = stuck
    served: Any = None
    payloads: Any = [Payload(QUEUED_BYTES // 8) for _ in range(8)]
    held = [weakref.ref(one) for one in payloads]
    asked = [decoders.read(served, one, "", 30, ("large", "")) for one in payloads]
    assert not any(one.done() for one in asked)
    refused = decoders.read(served, b"x", "", 30, ("large", "")).exception(0)
    assert isinstance(refused, ProtocolError)
    assert refused.status == 429
    gc.disable()  # nothing may have to be searched for
    try:
        payloads.clear()
        for one in asked:
            assert one.cancel()
        assert not any(one() for one in held)
    finally:
        gc.enable()
    assert not decoders.read(served, b"x", "", 30, ("large", "")).done()
