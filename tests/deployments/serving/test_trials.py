"""Canary and shadow: who is answered by what, and what is counted, over two workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.state import Canary
from tests.deployments.serving.letters import letters
from tests.deployments.serving.sequences import opinion_version
from tests.deployments.serving.test_control import BODY, INFER, NO_STORE, eventually, placed

CANARY, SHADOW = "/v1/lines/air-time/canary", "/v1/lines/air-time/shadow"
RECORD = {"distance": 1, "hour": 2}


@pytest.fixture(scope="module")
def tried(
    tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any
) -> Iterator[tuple[Any, Path]]:
    """A server of two workers with `air-time` 1, in production, 2 and 3."""
    root = tmp_path_factory.mktemp("tried") / "repository"
    versions = placed(root, table, "1", "2", "3")
    with begun(root, "--workers", "2", environment=NO_STORE) as server:
        for number, version in versions.items():
            assert server.load(version, number).status == 200
        server.promote("air-time", "1")
        yield server, root


def by(server: Any, identity: str, path: str = INFER, **headers: str) -> str:
    answer = server.ask("POST", path, BODY, x_request_id=identity, **headers)
    assert answer.status == 200
    return str(answer.headers["modelmint-version"])


def test_a_canary_takes_its_share_of_request_ids(tried: Any) -> None:
    server, _ = tried
    answer = server.ask("POST", CANARY, {"version": "2", "percent": 30})
    assert answer.status == 200
    assert answer.json["canary"]["who"].startswith("first (key ")
    first = {f"r-{number}": by(server, f"r-{number}") for number in range(80)}
    share = list(first.values()).count("2")
    assert 8 < share < 42  # six deviations around 24
    # The same id gets the same version, in every worker.
    assert {name: by(server, name) for name in first} == first
    for name, version in first.items():  # the id in the body is one too
        answer = server.ask("POST", INFER, orjson.dumps(orjson.loads(BODY) | {"id": name}))
        assert answer.headers["modelmint-version"] == answer.json["model_version"] == version
        assert answer.headers["x-request-id"] == name
    assert by(server, "r-1", "/v2/models/air-time/versions/3/infer") == "3"
    assert server.ask("GET", "/v2/models/air-time").headers["modelmint-version"] == "1"
    bad = server.ask("POST", INFER, b"{}", x_request_id="r-1", content_type="application/json")
    assert bad.status == 400
    found = server.ask("GET", CANARY).json["canary"]
    compared = found["comparison"]
    assert compared["canary"]["requests"] + compared["production"]["requests"] == 241
    assert abs(compared["canary"]["requests"] - 3 * share) <= 1
    assert compared["canary"]["refused"] + compared["production"]["refused"] == 1
    assert compared["canary"]["failed"] == compared["production"]["failed"] == 0
    assert compared["canary"]["slowest_ms"] >= compared["canary"]["mean_ms"] > 0
    assert server.ask("GET", "/").json["lines"]["air-time"]["canary"] == "2"

    assert server.ask("POST", f"{CANARY}/end", {}).status == 200
    assert {by(server, name) for name in first} == {"1"}
    assert server.ask("GET", CANARY).json == {"line": "air-time", "canary": None}
    assert server.ask("POST", f"{CANARY}/end", {}).json["code"] == "no_canary"
    ended = [e for e in server.ask("GET", "/v1/audit").json["entries"] if "end" in e["action"]]
    assert ended[-1]["detail"]["comparison"] == compared


def test_a_canary_takes_a_tenant_or_keys(tried: Any) -> None:
    server, _ = tried
    keys = [
        server.ask("POST", "/v1/keys", {"tenant": tenant, "scopes": ["predict:*"]}).json["key"]
        for tenant in ("acme", "acme", *(f"t{n}" for n in range(10)))
    ]
    shown = [{"authorization": f"Bearer {key}"} for key in keys]
    server.ask("POST", CANARY, {"version": "2", "tenant": "acme"})
    assert [by(server, "x", **one) for one in shown] == ["2"] * 2 + ["1"] * 10
    server.ask("POST", CANARY, {"version": "3", "percent": 50, "by": "key"})
    once = [by(server, "x", **one) for one in shown]
    assert set(once) == {"1", "3"}  # all alike with a probability of 1 in 2048
    assert [by(server, "y", **one) for one in shown] == once
    # Promoting what was tried ends the trial.
    assert server.promote("air-time", "3").status == 200
    assert server.ask("GET", CANARY).json["canary"] is None
    server.promote("air-time", "1")


def test_a_canary_for_a_tenant_that_nobody_can_be_is_refused(tried: Any) -> None:
    server, _ = tried
    made = server.ask("POST", "/v1/keys", {"tenant": "gone", "scopes": ["predict:*"]}).json
    asked = {"version": "2", "tenant": "gone"}
    assert server.ask("POST", CANARY, asked).status == 200
    assert server.ask("POST", f"{CANARY}/end", {}).status == 200
    assert server.ask("POST", f"/v1/keys/{made['id']}/revoke", {}).status == 200
    late = {"tenant": "late", "scopes": ["predict:*"], "expires": "2001-01-01"}
    ended = server.ask("POST", "/v1/keys", late).json
    for tenant in ("gone", "nobody", "late"):
        refused = server.ask("POST", CANARY, asked | {"tenant": tenant})
        assert (refused.status, refused.json["code"]) == (404, "unknown_tenant")
        assert repr(tenant) in refused.json["error"]
    assert server.ask("GET", CANARY).json["canary"] is None
    # Rotated to a later end it counts again.
    later = {"expires": "2101-01-01"}
    assert server.ask("POST", f"/v1/keys/{ended['id']}/rotate", later).status == 200
    assert server.ask("POST", CANARY, asked | {"tenant": "late"}).status == 200
    assert server.ask("POST", f"{CANARY}/end", {}).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": "2"}, 400),
        ({"version": "2", "percent": 10, "tenant": "acme"}, 400),
        ({"version": "2", "percent": 0}, 400),
        ({"version": "2", "percent": 101}, 400),
        ({"version": "2", "percent": "many"}, 400),
        ({"version": "2", "percent": 10, "by": "hour"}, 400),
        ({"version": "2", "percent": 10, "who": "me"}, 400),
        ({"version": "../2", "percent": 10}, 400),
        ({"version": "9", "percent": 10}, 404),
        ({"version": "1", "percent": 10}, 409),
    ],
)
def test_a_wrong_canary_is_refused(tried: Any, body: dict[str, Any], status: int) -> None:
    server, root = tried
    before = orjson.loads((root / "state.json").read_bytes())["lines"]
    assert server.ask("POST", CANARY, body).status == status
    assert orjson.loads((root / "state.json").read_bytes())["lines"] == before


def test_a_shadow_computes_what_was_answered_and_is_compared(tried: Any) -> None:
    server, _ = tried
    assert server.ask("POST", SHADOW, {"version": "2"}).status == 200
    for number in range(10):
        assert by(server, f"s-{number}") == "1"
    answer = server.ask("POST", "/v1/lines/air-time/predict", RECORD)
    assert answer.json["version"] == "1"
    # What names a version is not production's.
    by(server, "s", "/v2/models/air-time/versions/3/infer")

    def compared() -> dict[str, Any]:
        found: dict[str, Any] = server.ask("GET", SHADOW).json["shadow"]["comparison"]
        return found

    assert eventually(lambda: compared()["requests"] == 11)
    found = compared()
    assert (found["failed"], found["dropped"], found["rows"]) == (0, 0, 11)
    assert found["different_rows"] == 11
    assert found["largest_difference"] == pytest.approx(10 / 15)  # 25 instead of 15
    assert server.ask("POST", f"{SHADOW}/end", {}).json["shadow"]["comparison"] == found
    by(server, "s-after")
    assert server.ask("GET", SHADOW).json["shadow"] is None


def test_a_shadow_reads_a_text_with_a_vocabulary_of_its_own(
    tmp_path: Path, start: Any, sealed: Any
) -> None:
    server = start(tmp_path / "repository", environment=NO_STORE)
    versions = {"1": opinion_version(), "2": opinion_version("!+-abcxyz 好")}
    for number, version in versions.items():
        version.place(tmp_path / "repository", number)
        assert server.load(version, number).status == 200
    server.promote("opinions", "1")
    path = "/v1/lines/opinions"
    assert server.ask("POST", f"{path}/shadow", {"version": "2"}).status == 200
    answer = server.ask("POST", f"{path}/predict", b"a + b + -", content_type="text/plain")
    assert answer.json["predictions"][0]["opinion"] == "for"

    def compared() -> dict[str, Any]:
        found: dict[str, Any] = server.ask("GET", f"{path}/shadow").json["shadow"]["comparison"]
        return found

    assert eventually(lambda: compared()["requests"] == 1)
    found = compared()
    assert (found["failed"], found["different_rows"], found["largest_difference"]) == (0, 0, 0)


def test_a_line_that_writes_takes_a_canary_and_no_shadow(
    tmp_path: Path, start: Any, sealed: Any
) -> None:
    server = start(tmp_path / "repository", environment=NO_STORE)
    for number, likely in (("1", 0.7), ("2", 0.9)):
        version = sealed("letters", letters(likely))
        version.place(tmp_path / "repository", number)
        assert server.load(version, number).status == 200
    server.promote("letters", "1")
    refused = server.ask("POST", "/v1/lines/letters/shadow", {"version": "2"})
    assert refused.status == 409
    assert "try a canary" in refused.json["error"]
    canary = {"version": "2", "percent": 100}
    assert server.ask("POST", "/v1/lines/letters/canary", canary).status == 200
    for asked in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
        answer = server.ask("POST", "/v1/lines/letters/predict", asked)
        assert answer.headers["modelmint-version"] == "2"
    compared = server.ask("GET", "/v1/lines/letters/canary").json["canary"]["comparison"]
    assert compared["canary"]["requests"] == 2


def test_shares_are_as_large_as_they_are_to_be() -> None:
    canary = Canary(version="2", percent=12.5, id="of this test")
    taken = sum(canary.takes("", str(number)) for number in range(20_000))
    assert 2200 < taken < 2800  # 2500, six deviations of 47
