"""Promote and roll back, in one worker or several, with the store down, recorded afterwards."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from deployments.serving.workers import Workers
from models.promotions import Promotions

BODY = orjson.dumps(
    {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
)
INFER = "/v2/models/air-time/infer"
ROLLBACK = "/v1/lines/air-time/rollback"
NO_STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


def eventually(true: Callable[[], bool]) -> bool:
    for _ in range(400):
        if true():
            return True
        time.sleep(0.05)
    return False


def placed(root: Path, table: Any, *numbers: str) -> dict[str, Any]:
    versions = {number: table(10.0 * int(number)) for number in numbers}
    for number, version in versions.items():
        version.place(root, number)
    return versions


def serving(server: Any, asked: int = 1) -> set[str]:
    """The versions that answer on so many connections."""
    return {server.ask("POST", INFER, BODY).headers["modelmint-version"] for _ in range(asked)}


def test_rollback_goes_back_one_by_one_without_the_store(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2", "3")
    server = start(root, environment=NO_STORE)
    assert server.ask("POST", ROLLBACK, {}).status == 404
    for number, version in versions.items():
        assert server.load(version, number).status == 200
        assert server.promote("air-time", number).status == 200
    assert server.ask("GET", "/").json["lines"]["air-time"]["previous"] == ["1", "2"]
    answer = server.ask("POST", ROLLBACK, {"reason": "answers are late"})
    assert (answer.status, answer.json["version"], answer.json["replaced"]) == (200, "2", "3")
    assert answer.json["by"].startswith("first (key ")
    assert serving(server) == {"2"}
    assert server.stop() == 0

    server = start(root, environment=NO_STORE)
    assert server.ask("POST", ROLLBACK, {}).json["version"] == "1"
    assert server.ask("POST", ROLLBACK, {}).json["code"] == "no_previous"
    # A version that was rolled back is still loaded, and can be named.
    assert server.ask("POST", ROLLBACK, {"version": "3"}).json["version"] == "3"
    assert server.ask("POST", ROLLBACK, {"version": "3"}).json["code"] == "conflict"
    assert server.ask("POST", ROLLBACK, {"version": "9"}).status == 404
    assert server.ask("POST", ROLLBACK, {"why": "x"}).status == 400
    assert server.ask("POST", ROLLBACK, {"reason": "x" * 1001}).status == 400
    assert serving(server) == {"3"}
    assert server.ask("POST", "/v1/lines/air-time/record", {}).json["unrecorded"] == 6
    logged = server.ask("GET", "/v1/audit").json["entries"]
    assert [e["action"] for e in logged if e["action"] == "rollback"]
    assert {"reason": "answers are late"} in [e["detail"] for e in logged]


def test_what_was_promoted_without_the_store_is_recorded_once_it_is_back(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    client, found = remote
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2")
    server = start(root, environment=found | NO_STORE)
    for number, version in versions.items():
        server.load(version, number)
        server.promote("air-time", number)
    server.ask("POST", ROLLBACK, {"reason": "wrong labels"})
    assert server.stop() == 0

    server = start(root, "--workers", "2", environment=found)
    for _ in range(30):
        # A store that has just started may not answer in time.
        answer = server.ask("POST", "/v1/lines/air-time/record", {})
        if answer.json == {"unrecorded": 0}:
            break
    assert answer.json == {"unrecorded": 0}
    key = "promotions/air-time.json"

    def read() -> Promotions:
        content = client.get_object(Bucket="modelmint", Key=key)["Body"].read()
        return Promotions.model_validate_json(content)

    record = read()
    assert [(e.kind, e.number) for e in record.history] == [
        ("promote", 1), ("promote", 2), ("rollback", 1),
    ]  # fmt: skip
    assert record.history[-1].against is None  # as when it was promoted first
    assert record.rolled_back(versions["1"].digest) is None
    back = record.rolled_back(versions["2"].digest)
    assert back is not None
    assert back.why == "wrong labels"
    assert "by first (key " in back.told
    # By itself too, and each entry once.
    server.promote("air-time", "2")
    assert eventually(lambda: len(read().history) == 4)
    assert read().rolled_back(versions["2"].digest) is None
    known = {"version": "1", "recorded": "an-entry"}
    assert server.ask("POST", "/v1/lines/air-time/promote", known).status == 200
    assert server.ask("POST", "/v1/lines/air-time/record", {}).json == {"unrecorded": 0}
    assert len(read().history) == 4


def test_every_worker_follows_also_one_that_was_killed(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2")
    server = start(root, "--workers", "3", environment=NO_STORE)
    alive = root / ".workers"
    assert eventually(lambda: len(list(alive.glob("*.json"))) == 3)
    for number, version in versions.items():
        assert server.load(version, number).status == 200
        assert server.promote("air-time", number).status == 200
        assert serving(server, 30) == {number}

    parent = psutil.Process(server.process.pid)
    before = {int(path.name.partition("-")[0]) for path in alive.glob("*.json")}
    assert before <= {child.pid for child in parent.children()}
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    assert server.ask("POST", ROLLBACK, {}).json["version"] == "1"
    assert serving(server, 20) == {"1"}

    def three() -> bool:
        now = {int(path.name.partition("-")[0]) for path in alive.glob("*.json")}
        return len(now - {killed}) == 3

    assert eventually(three)
    assert serving(server, 30) == {"1"}
    assert server.promote("air-time", "2").status == 200
    assert serving(server, 30) == {"2"}

    key = server.ask("POST", "/v1/keys", {"tenant": "acme", "scopes": ["read:*"]}).json
    shown = {"authorization": f"Bearer {key['key']}"}
    assert {server.ask("GET", "/v2", **shown).status for _ in range(20)} == {200}
    server.ask("POST", f"/v1/keys/{key['id']}/revoke", {})
    assert eventually(
        lambda: {server.ask("GET", "/v2", **shown).status for _ in range(20)} == {401}
    )

    children = parent.children()
    server.process.kill()
    gone, left = psutil.wait_procs(children, 20)
    assert not left, gone


def test_a_worker_that_cannot_follow_is_named(start: Any, table: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2")
    server = start(root, environment=NO_STORE)
    other = Workers(root / ".workers")
    other.acknowledge(10**6, {"air-time/2": "model.onnx cannot be read"})
    try:
        assert server.load(versions["1"], "1").status == 200
        answer = server.load(versions["2"], "2")
        assert (answer.status, answer.json["code"]) == (503, "workers_behind")
        said = f"1 of 2 workers: worker {os.getpid()}: model.onnx cannot be read"
        assert answer.json["error"] == said
    finally:
        other.leave()
    assert server.load(versions["2"], "2").status == 200


LONG = "9" * 60_000
LOAD, UNLOAD = (f"/v2/repository/models/{{}}/{what}" for what in ("load", "unload"))
PROMOTE, CANARY = "/v1/lines/{}/promote", "/v1/lines/{}/canary"
KEY = {"tenant": "a", "scopes": ["read:*"]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LOAD, {"parameters": {"version": LONG, "digest": "0" * 64}}),
        (LOAD, {"parameters": {"version": "1", "digest": LONG}}),
        (LOAD, {"parameters": {"version": "1", "digest": "0" * 64, "source": "s3://" + LONG}}),
        (UNLOAD, {"parameters": {"version": LONG}}),
        (PROMOTE, {"version": LONG}),
        (PROMOTE, {"version": "1", "recorded": LONG}),
        (PROMOTE, {"version": "1", "reason": LONG}),
        ("/v1/lines/{}/rollback", {"version": LONG}),
        ("/v1/lines/{}/rollback", {"reason": "9" * 1001}),
        (CANARY, {"version": LONG, "percent": 1}),
        (CANARY, {"version": "1", "tenant": LONG}),
        ("/v1/lines/{}/shadow", {"version": LONG}),
        ("/v1/keys", KEY | {"tenant": LONG}),
        ("/v1/keys", KEY | {"scopes": [f"read:{LONG}"]}),
        ("/v1/keys", KEY | {"scopes": ["read:*"] * 5_000}),
        ("/v1/keys", KEY | {"expires": LONG}),
        *((path.replace("{}", "a" * 50_000), {"version": "1"}) for path in (UNLOAD, PROMOTE)),
    ],
    ids=lambda given: None if isinstance(given, dict) else given[:40],
)
def test_what_is_too_long_is_refused_and_recorded_nowhere(
    shared: Any, path: str, body: dict[str, Any]
) -> None:
    before = shared.ask("GET", "/v1/audit").json["entries"]
    if path.startswith(UNLOAD.split("{}")[0]):
        body = body if "parameters" in body else {"parameters": body}
    answer = shared.ask("POST", path.format("air-time"), body)
    assert answer.status == 400
    assert len(answer.body) < 500
    assert shared.ask("GET", "/v1/audit").json["entries"] == before
