"""More versions than memory: the idle ones rest in their folders until they are asked for."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.folder import version_folder
from deployments.serving.memory import COPIES, EACH, Memory
from tests.conftest import ROOT
from tests.deployments.serving.test_control import BODY, INFER, NO_STORE, placed, serving

NUMBERS = ("1", "2", "3", "4", "5")


def infer(server: Any, number: str) -> int:
    status: int = server.ask("POST", f"/v2/models/air-time/versions/{number}/infer", BODY).status
    return status


def test_the_least_recently_used_rests_and_answers_when_asked(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, *NUMBERS)
    size = (version_folder(root, "air-time", "1") / "model.onnx").stat().st_size
    budget = ("--memory-mb", str(3.5 * (EACH + COPIES * size) / 1e6))  # three versions
    server = start(root, *budget, environment=NO_STORE)

    def idle() -> set[str]:
        return set(server.ask("GET", "/").json["lines"]["air-time"]["idle"])

    for number, version in versions.items():
        assert server.load(version, number).status == 200
        if number == "1":
            server.promote("air-time", "1")
    assert idle() == {"2", "3"}
    assert infer(server, "4") == infer(server, "2") == 200
    assert idle() == {"3", "5"}  # of 2, 4 and 5 the one that was asked for longest ago
    path = "/v2/models/air-time"
    assert server.ask("GET", f"{path}/versions/3/ready").json["ready"] is True
    assert server.ask("GET", path).json["versions"] == list(NUMBERS)
    states = {m["version"]: m for m in server.ask("POST", "/v2/repository/index", {}).json}
    assert states["3"]["reason"].startswith("out of memory")
    assert states["3"]["digest"] == versions["3"].digest
    # An idle one can be promoted, and what was in production stays in memory.
    assert server.promote("air-time", "5").status == 200
    assert serving(server) == {"5"}
    assert not {"1", "5"} & idle()
    assert len(idle()) == 2
    assert server.ask("POST", "/v1/lines/air-time/rollback", {}).json["version"] == "1"
    assert server.ask("POST", "/v2/repository/models/air-time/unload",
                      {"parameters": {"version": "3"}}).status == 200  # fmt: skip
    assert infer(server, "3") == 404
    assert server.stop() == 0

    server = start(root, *budget, environment=NO_STORE)
    assert serving(server) == {"1"}
    assert idle() == {"2"}  # the default first, then the newest
    model = version_folder(root, "air-time", "2") / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert infer(server, "2") == 503
    failed = server.ask("GET", "/").json["lines"]["air-time"]["failed"]
    assert "2" in failed
    assert serving(server) == {"1"}
    assert infer(server, "4") == infer(server, "5") == 200


def test_what_must_answer_stays_though_it_is_too_much(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2", "3")
    server = start(root, "--memory-mb", "0", environment=NO_STORE)
    for number, version in versions.items():
        assert server.load(version, number).status == 200
        assert server.promote("air-time", number).status == 200
    assert server.ask("POST", INFER, BODY).json["outputs"][0]["data"] == [35.0]
    assert server.ask("GET", "/").json["lines"]["air-time"]["idle"] == {"1": versions["1"].digest}
    assert infer(server, "1") == 200
    shadowed = server.ask("POST", "/v1/lines/air-time/shadow", {"version": "1"})
    assert shadowed.status == 200
    assert server.ask("GET", "/").json["lines"]["air-time"]["idle"] == {}


def test_a_version_costs_what_was_measured_of_a_small_one(tmp_path: Path) -> None:
    figures = orjson.loads((ROOT / "benchmarks/results/swaps.json").read_bytes())["figures"]
    network = version_folder(tmp_path, "air-time", "1") / "model.onnx"
    network.parent.mkdir(parents=True)
    memory = Memory(tmp_path, 25_000_000)
    network.write_bytes(bytes(11_000))
    measured = figures["megabytes_per_version"] * 1e6
    assert memory.cost("air-time", "1") == pytest.approx(measured, rel=0.1)
    # Without that five hundred of them would seem to fit.
    assert memory.room({"air-time": ["1"] * 4}, "air-time", "1")
    assert not memory.room({"air-time": ["1"] * 5}, "air-time", "1")
    network.write_bytes(bytes(10_000_000))
    assert memory.cost("air-time", "1") == EACH + COPIES * 10_000_000
    assert memory.cost("air-time", "2") == 0
