"""A sample of what `make fuzz` asks: every operation, valid and not, and sequences of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzzing import fuzz


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, serve: Any, table: Any) -> Iterator[Any]:
    """A server of `air-time` 1 that may be changed."""
    root = tmp_path_factory.mktemp("fuzzed") / "repository"
    table().place(root, "1")
    server = serve(root)
    try:
        assert server.load(table(), "1").status == 200
        assert server.promote("air-time", "1").status == 200
        yield server
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("line", [None, "air-time"])
def test_schemathesis_finds_no_error_and_no_violation(
    fuzzed: Any, tmp_path: Path, line: str | None
) -> None:
    url = f"http://127.0.0.1:{fuzzed.port}"
    # The same requests every time; what is random is for `make fuzz`.
    more = ("--max-examples", "1", "--no-shrink", "--generation-deterministic")
    found = fuzz(url, fuzzed.key, tmp_path, more, line)
    assert found.failures == [], found.output
    assert found.operations == len(_operations(fuzzed))
    assert found.requests > 500
    assert "Traceback" not in fuzzed.log


def _operations(server: Any) -> list[str]:
    paths = server.ask("GET", "/openapi.json").json["paths"]
    return [f"{method} {path}" for path, methods in paths.items() for method in methods]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # What Schemathesis found: the empty version was an internal error, the others were let in.
        ("/v1/lines/air-time/rollback", {"version": ""}),
        ("/v1/lines/air-time/promote", {"version": "1", "recorded": "x", "reason": "y" * 1001}),
        ("/v1/lines/%C2%84/record", {}),
        ("/v2/repository/index", {"ready": {}}),
    ],
)
def test_what_it_found_is_refused(fuzzed: Any, path: str, body: dict[str, Any]) -> None:
    answer = fuzzed.ask("POST", path, body)
    assert answer.status in (400, 404)
    assert set(answer.json) == {"error", "code", "request_id"}


def test_a_wrong_method_is_told_every_right_one(fuzzed: Any) -> None:
    answer = fuzzed.ask("PUT", "/v1/keys", {})
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
