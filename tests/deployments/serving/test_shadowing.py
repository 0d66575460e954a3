"""Whatever a shadow does, or does not, every caller is answered and nothing heaps up."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from deployments.serving.counters import Counters
from deployments.serving.shadowing import SHADOW, WAITING, WAITING_BYTES, Mirrored, Shadowing
from deployments.serving.state import Shadow
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from tests.deployments.serving.test_control import NO_STORE, eventually
from tests.deployments.serving.versions import Version, own_version

NUMBERS = np.array([[1, 2], [3, 4]], np.float32)
ASKED = 100


def linear() -> Version:
    """y = a + 2 b."""
    return own_version([helper.make_node("MatMul", ["numbers", "w"], ["y"])], NUMBERS)


def logarithm(**weights: Any) -> Version:
    """y = log a + 2 log b, which is NaN for numbers below zero."""
    nodes = [
        helper.make_node("Log", ["numbers"], ["logs"]),
        helper.make_node("MatMul", ["logs", "w"], ["y"]),
    ]
    return own_version(nodes, NUMBERS, **weights)


def choosy() -> Version:
    """y = a + b; the network fails for numbers over 9."""
    nodes = [
        helper.make_node("Cast", ["numbers"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "places"], ["found"]),
        helper.make_node("ReduceSum", ["found", "along"], ["y"]),
    ]
    table, along = np.arange(10, dtype=np.float32), np.array([1], np.int64)
    return own_version(nodes, NUMBERS, table=table, along=along)


def endless() -> Version:
    """y = a + 2 b, after as many turns of a loop as the largest of the numbers says."""
    none = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["goes_on"]),
            helper.make_node("Add", ["before", "zero"], ["after"]),
        ],
        "turn",
        [
            none("turn", TensorProto.INT64, []),
            none("on", TensorProto.BOOL, []),
            none("before", TensorProto.FLOAT, []),
        ],
        [none("goes_on", TensorProto.BOOL, []), none("after", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "zero"], ["nothing"], body=body),
        helper.make_node("MatMul", ["numbers", "w"], ["product"]),
        helper.make_node("Add", ["product", "nothing"], ["y"]),
    ]
    return own_version(nodes, NUMBERS, zero=np.float32(0))


def hostile(sealed: Any) -> Version:
    """`linear` whose decoder waits when a record says so."""
    files = dict(linear().files)
    theirs = b"tests.deployments.serving.hostile:HostileFeatures"
    files[SIGNATURE_FILE] = files[SIGNATURE_FILE].replace(b"models.tables:TableFeatures", theirs)
    kept = (MODEL_FILE, SIGNATURE_FILE, SAMPLE_FILE)
    found: Version = sealed("own", {name: files[name] for name in kept})
    return found


def placed(server: Any, *versions: Version) -> None:
    """Serve them as 1, 2, ...; the first answers."""
    for number, version in enumerate(versions, 1):
        version.place(server.root, str(number))
        assert server.load(version, str(number)).status == 200
    assert server.promote("own", "1").status == 200


def shadow(server: Any, number: str) -> None:
    assert server.ask("POST", "/v1/lines/own/shadow", {"version": number}).status == 200


def compared(server: Any) -> Any:
    return server.ask("GET", "/v1/lines/own/shadow").json["shadow"]["comparison"]


def infer(server: Any, a: float, b: float) -> Any:
    given = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [a, b]}
    answer = server.ask("POST", "/v2/models/own/infer", {"inputs": [given]})
    assert answer.status == 200
    return answer.json["outputs"][0]["data"][0]


def predict(server: Any, a: float, b: float, **more: Any) -> Any:
    answer = server.ask("POST", "/v1/lines/own/predict", {"a": a, "b": b, **more})
    assert answer.status == 200
    return answer.json["predictions"][0]["y"]


def test_a_shadow_that_never_ends_keeps_nobody_waiting(start: Any, tmp_path: Path) -> None:
    server = start(tmp_path / "repository", environment=NO_STORE)
    placed(server, linear(), endless())
    shadow(server, "2")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit((infer, predict)[n % 2], server, 1e9, 0.0) for n in range(ASKED)]
        assert {one.result() for one in asked} == {1e9}
    # One is computed, unless its thread has not come to it yet, and a few wait.
    assert eventually(lambda: compared(server)["dropped"] >= ASKED - WAITING - 1)
    found = compared(server)
    assert found["dropped"] <= ASKED - WAITING
    assert (found["requests"], found["failed"]) == (0, 0)
    assert server.stop() == 0


def test_a_shadow_that_never_ends_makes_way_for_the_next(start: Any, tmp_path: Path) -> None:
    server = start(tmp_path / "repository", environment=NO_STORE)
    placed(server, linear(), endless(), logarithm())
    shadow(server, "2")
    assert infer(server, 1e9, 0) == 1e9
    shadow(server, "3")
    assert infer(server, 1, 2) == 5
    assert eventually(lambda: compared(server)["requests"] == 1)
    found = compared(server)
    assert (found["failed"], found["dropped"], found["different_rows"]) == (0, 0, 1)


def test_what_a_shadow_decodes_takes_no_turn_of_anybody(
    start: Any, sealed: Any, tmp_path: Path
) -> None:
    released = tmp_path / "released"
    settings = NO_STORE | {"HOSTILE_RELEASE": str(released)}
    options = "--decoders", "1", "--timeout-seconds", "600"
    server = start(tmp_path / "repository", *options, environment=settings)
    placed(server, linear(), hostile(sealed))
    shadow(server, "2")
    assert predict(server, 1, 2, wait=True) == 5
    assert eventually(released.with_suffix(".begun").exists)
    assert {predict(server, 3, 4) for _ in range(ASKED)} == {11}
    assert eventually(lambda: compared(server)["dropped"] == ASKED - WAITING)
    assert compared(server)["requests"] == 0
    released.touch()
    assert eventually(lambda: compared(server)["requests"] == WAITING + 1)
    found = compared(server)
    assert (found["failed"], found["different_rows"]) == (0, 0)
    assert found["dropped"] == ASKED - WAITING


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, begun: Any) -> Iterator[Any]:
    """A server of `own`: 1 is linear, 2 and 4 are logarithms, 3 is choosy."""
    root = tmp_path_factory.mktemp("tried") / "repository"
    with begun(root, environment=NO_STORE) as server:
        placed(server, linear(), logarithm(), choosy(), logarithm(unused=np.float32(1)))
        yield server


def test_a_shadow_that_fails_disturbs_nobody(tried: Any) -> None:
    shadow(tried, "3")
    assert infer(tried, 1, 20) == predict(tried, 1, 20) == 41
    assert infer(tried, 1, 2) == 5
    assert eventually(lambda: compared(tried)["requests"] == 3)
    found = compared(tried)
    assert (found["failed"], found["dropped"], found["rows"]) == (2, 0, 1)
    assert "Traceback" not in tried.log


def test_a_shadow_that_answers_nan_disturbs_nobody(tried: Any) -> None:
    shadow(tried, "2")
    assert infer(tried, -1, 2) == predict(tried, -1, 2) == 3
    assert eventually(lambda: compared(tried)["requests"] == 2)
    found = compared(tried)
    assert (found["failed"], found["different_rows"]) == (0, 2)
    assert found["largest_difference"] == 1e6
    assert "Traceback" not in tried.log


def test_where_production_answers_nan_the_shadow_goes_on(tried: Any) -> None:
    assert tried.promote("own", "2").status == 200
    for number, different in (("1", 1), ("4", 0)):
        shadow(tried, number)
        assert infer(tried, -1, 2) is None
        assert eventually(lambda: compared(tried)["requests"] == 1)
        found = compared(tried)
        assert (found["failed"], found["different_rows"]) == (0, different)
        assert found["largest_difference"] == different * 1e6
        assert infer(tried, 1, 1) == 0
        assert eventually(lambda: compared(tried)["requests"] == 2)
    assert tried.promote("own", "1").status == 200
    assert "Traceback" not in tried.log


class Held:
    """A `Shadowing` whose thread is at its first request until it is let go; each then fails."""

    def __init__(self, folder: Path) -> None:
        self.counters = Counters(folder / "counters", SHADOW)
        self.begun, self.go = threading.Event(), threading.Event()
        self.over = False
        self.errors: Iterator[OSError] = iter(())
        self.shadowing = Shadowing(self._add, lambda *_: not self.over)

    def _add(self, line: str, trial: Shadow, added: dict[str, int], largest: Any) -> None:
        del line, trial, largest
        for error in self.errors:
            raise error
        self.counters.add(**added)

    def _read(self, _: Any) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        raise ValueError

    def offer(self, size: int = 0) -> None:
        served: Any = SimpleNamespace(line="any", number="2")
        one = Mirrored(served, served, Shadow(version="2"), {}, self._read, size)
        asyncio.run(self.shadowing.offer(one))

    def counted(self, **expected: int) -> bool:
        return self.counters.read() == dict.fromkeys(SHADOW, 0) | expected


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    found = Held(tmp_path)
    yield found
    found.go.set()
    found.shadowing.close()


@pytest.mark.parametrize(("size", "most"), [(0, WAITING), (WAITING_BYTES // 3, 3)])
def test_what_waits_for_a_shadow_is_bounded_and_let_go_of(held: Held, size: int, most: int) -> None:
    held.offer(size)
    assert held.begun.wait(30)
    for _ in range(most + 5):
        held.offer(size)
    assert held.counted(dropped=5)
    held.go.set()
    assert eventually(lambda: held.counted(requests=most + 1, failed=most + 1, dropped=5))
    for _ in range(most):  # there is room again
        held.offer(size)
    assert eventually(lambda: held.counted(requests=2 * most + 1, failed=2 * most + 1, dropped=5))


def test_what_a_trial_that_ended_was_to_compute_is_not_counted(held: Held) -> None:
    for _ in range(3):
        held.offer()
    assert held.begun.wait(30)
    held.over = True
    held.go.set()
    assert eventually(held.shadowing._waiting.empty)
    held.offer()
    assert eventually(held.shadowing._waiting.empty)
    assert held.counted()
    held.shadowing.close()
    assert not held.shadowing._thread.is_alive()
    assert held.counted()


def test_a_request_that_cannot_be_compared_is_not_the_last(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held.errors = iter([OSError("the disk is full")])
    held.go.set()
    held.offer()
    held.offer()
    assert eventually(lambda: held.counted(requests=1, failed=1))
    assert "a shadow of any is not compared" in caplog.text
