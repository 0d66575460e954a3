"""What the response cache keeps, for whom, and how much of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments.serving.cache import LARGEST_INPUT, OVERHEAD, Cache
from deployments.serving.protocol import Tensors
from deployments.serving.session import Served, open_version


@pytest.fixture(scope="module")
def served(table: Any) -> Served:
    version = table()
    return open_version(version.line, "1", version.digest, version.files)


def numbers(*values: float, rows: int = 1) -> Tensors:
    return {"numbers": np.array(values, np.float32).reshape(rows, -1)}


def test_a_key_is_the_version_the_tenant_and_every_byte(served: Served) -> None:
    cache = Cache(10_000)
    first = cache.key(served, "acme", numbers(1, 2))
    assert first == cache.key(replace(served, number="7"), "acme", numbers(1, 2))
    others = {
        cache.key(served, "other", numbers(1, 2)),
        cache.key(replace(served, digest="f" * 64), "acme", numbers(1, 2)),
        cache.key(served, "acme", numbers(1, 3)),
        cache.key(served, "acme", numbers(1, 2, 3, 4)),
        cache.key(served, "acme", numbers(1, 2, 3, 4, rows=2)),
        cache.key(served, "acme", {"words": np.array(["a", "bc"], object)}),
        cache.key(served, "acme", {"words": np.array(["ab", "c"], object)}),
    }
    assert len(others) == 7
    assert first not in others


def test_what_is_not_to_be_kept_has_no_key(served: Served) -> None:
    assert Cache(0).key(served, "acme", numbers(1, 2)) is None
    assert Cache(9, frozenset({served.line})).key(served, "acme", numbers(1, 2)) is None
    large = {"numbers": np.zeros((LARGEST_INPUT // 8 + 1, 2), np.float32)}
    assert Cache(10_000).key(served, "acme", large) is None


def test_the_least_recently_used_goes_first() -> None:
    entry = OVERHEAD + 80
    cache = Cache(10 * entry)
    for index in range(10):
        cache.put(b"%d" % index, {"prediction": np.full(10, index, np.float64)})
    assert cache.get(b"0") is not None
    cache.put(b"new", {"prediction": np.zeros(10)})
    assert cache.get(b"1") is None
    for name in (b"0", b"2", b"9", b"new"):
        assert cache.get(name) is not None
    cache.put(b"huge", {"prediction": np.zeros(1000)})
    assert cache.get(b"huge") is None


def test_an_answer_is_a_copy_that_nobody_can_change() -> None:
    cache, given = Cache(10_000), np.arange(64.0)
    cache.put(b"key", {"prediction": given[:2]})
    given[:] = -1
    kept = cache.get(b"key")
    assert kept is not None
    assert kept["prediction"].tolist() == [0, 1]
    assert kept["prediction"].base is None
    with pytest.raises(ValueError, match="read-only"):
        kept["prediction"][0] = 5


def test_the_server_says_what_came_from_the_cache(batched: Any) -> None:
    def asked(line: str = "slow", **headers: str) -> tuple[str | None, Any]:
        answer = batched.ask("POST", f"/v2/models/{line}/infer", body, **headers)
        assert answer.status == 200
        return answer.headers.get("modelmint-cache"), answer.json["outputs"][0]["data"]

    body = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [7, 9]}]}
    none = {"cache_control": "no-store"}
    assert asked(**none) == (None, [1.0])
    assert asked() == ("miss", [1.0])
    assert asked() == ("hit", [1.0])
    assert asked(**none) == (None, [1.0])
    assert asked("uncached") == asked("uncached") == (None, [1.0])
    # What a person sends is read to the same tensors.
    answer = batched.ask("POST", "/v1/lines/slow/predict", {"distance": 7, "hour": 9})
    assert answer.headers["modelmint-cache"] == "hit"
    assert answer.json["predictions"][0]["y"] == 1.0


def test_another_tenant_does_not_see_that_it_was_asked(batched: Any) -> None:
    record, path = {"distance": 70, "hour": 85}, "/v1/lines/slow/predict"
    assert batched.ask("POST", path, record).headers["modelmint-cache"] == "miss"
    made = batched.ask("POST", "/v1/keys", {"tenant": "other", "scopes": ["predict:*"]})
    bearer = {"authorization": f"Bearer {made.json['key']}"}
    assert batched.ask("POST", path, record, **bearer).headers["modelmint-cache"] == "miss"


def test_a_quick_network_is_not_looked_up(shared: Any) -> None:
    record, path = {"distance": 70, "hour": 85}, "/v1/lines/air-time/predict"
    for _ in range(2):
        answer = shared.ask("POST", path, record)
        assert answer.status == 200
        assert "modelmint-cache" not in answer.headers
