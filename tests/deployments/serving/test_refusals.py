"""What the OpenAPI document says each operation refuses with, against what a real server does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.serving.bad import Bad, key, send

BODIES: dict[str, Any] = {
    "load": {},
    "unload": {"parameters": {"version": "9"}},
    "promote": {"version": "9"},
    "rollback": {"version": "9"},
    "canary": {"version": "9", "percent": 1},
    "shadow": {"version": "9"},
    "completions": {"model": "nobody", "prompt": "a"},
    "rotate": {},
    "keys": {"tenant": "a", "scopes": ["read:nobody"]},
    "index": {},
}
"""What is right but for the name, by the last part of a path."""


@pytest.fixture(scope="module")
def operations(shared: Any) -> dict[str, dict[str, Any]]:
    """The responses of the document, by `METHOD path`."""
    paths = shared.ask("GET", "/openapi.json").json["paths"]
    return {
        f"{method.upper()} {path}": operation["responses"]
        for path, methods in paths.items()
        for method, operation in methods.items()
    }


def asked(operation: str, name: str, body: Any = None) -> Bad:
    method, path = operation.split()
    filled = path.replace("{version}", "1").replace("{id}", "0" * 12)
    filled = re.sub(r"{\w+}", name, filled)
    if body is None and method == "POST":
        body = BODIES.get(path.rpartition("/")[2], b"")
    return Bad(filled, body, method=method)


CASES: dict[int, Callable[[str, Any], Bad]] = {
    401: lambda operation, _: asked(operation, "air-time")._replace(headers={"authorization": ""}),
    403: lambda operation, server: asked(operation, "air-time")._replace(
        headers=key(server, "elsewhere", "predict:elsewhere")
    ),
    404: lambda operation, _: asked(operation, "nobody"),
    413: lambda operation, _: asked(operation, "air-time", b" " * 100_001),
    415: lambda operation, _: asked(operation, "air-time")._replace(
        headers={"content-encoding": "br"}
    ),
}


@pytest.mark.parametrize("status", CASES)
def test_an_operation_refuses_with_what_it_says_and_says_what_it_refuses_with(
    shared: Any, operations: Any, status: int
) -> None:
    told, found = set(), set()
    for operation, responses in operations.items():
        if str(status) in responses:
            told.add(operation)
        answer = send(shared, CASES[status](operation, shared))
        assert str(answer.status) in responses, (operation, answer)
        if answer.status == status:
            found.add(operation)
    assert found == told
    assert found


def test_a_rate_bounds_every_operation_that_says_so(shared: Any, operations: Any) -> None:
    shown = key(shared, "fast", "read:*", limits={"rate": 0.001, "burst": 1})
    assert send(shared, Bad("/v2", None, headers=shown, method="GET")).status == 200
    for operation, responses in operations.items():
        answer = send(shared, asked(operation, "air-time")._replace(headers=shown))
        assert (answer.status == 429) == ("429" in responses), operation
        assert "retry-after" in answer.headers or answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *(("POST", path, b"{") for path in (
            "/v2/models/air-time/infer", "/v1/lines/air-time/predict",
            "/v1/lines/air-time/explain", "/v1/completions", "/v1/lines/air-time/promote",
            "/v1/lines/air-time/rollback", "/v1/lines/air-time/canary",
            "/v1/lines/air-time/shadow", "/v2/repository/index", "/v1/keys",
            "/v2/repository/models/air-time/load", "/v2/repository/models/air-time/unload",
            "/v1/keys/000000000000/rotate",
        )),
        ("POST", "/v1/lines/%C2%84/record", b""),
        ("GET", "/v1/usage?days=x", None),
        ("GET", "/v1/audit?after=x", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(shared: Any, method: str, path: str, body: Any) -> None:
    assert send(shared, Bad(path, body, method=method)).status == 400


def test_wrong_bodies_are_told_where_there_are_bodies(shared: Any, operations: Any) -> None:
    told = {operation for operation, responses in operations.items() if "400" in responses}
    for operation in told:
        method, path = operation.split()
        asks_more = path in ("/v1/usage", "/v1/audit") or path.endswith("/record")
        assert ("408" in operations[operation]) != asks_more
        assert method == "POST" or asks_more


def test_every_refusal_has_the_schema_of_its_answer(operations: Any) -> None:
    for operation, responses in operations.items():
        openai = re.search(r"/v1/(completions|models)", operation)
        wanted = f"#/components/schemas/{'OpenAIError' if openai else 'Error'}"
        for status, response in responses.items():
            if status != "200":
                assert response["content"]["application/json"]["schema"] == {"$ref": wanted}
                assert response["description"]


def test_an_answer_that_is_not_finite_is_told_where_numbers_are_answered(
    shared: Any, operations: Any
) -> None:
    tensor = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3e38, 3e38]}
    for operation, given in (
        ("POST /v2/models/{name}/infer", {"inputs": [tensor]}),
        ("POST /v2/models/{name}/versions/{version}/infer", {"inputs": [tensor]}),
        ("POST /v1/lines/{name}/predict", {"distance": 3e38, "hour": 3e38}),
    ):
        answer = send(shared, asked(operation, "air-time", given))
        assert (answer.status, answer.json["code"]) == (422, "not_finite"), operation
        assert "422" in operations[operation]


def test_files_of_the_server_that_are_damaged_are_told_where_they_are_needed(
    start: Any, table: Any, tmp_path: Path, operations: Any
) -> None:
    root = tmp_path / "repository"
    server, version = start(root), table()
    version.place(root, "1")
    assert server.load(version, "1").status == 200
    assert server.promote("air-time", "1").status == 200
    made = server.ask("POST", "/v1/keys", BODIES["keys"]).json["id"]
    log = root / ".server" / "audit.jsonl"
    log.write_bytes(log.read_bytes()[:-20] + b"\n")
    found = set()
    for operation in operations:
        promotes = operation.endswith("/promote")
        one = asked(operation, "air-time", {"version": "1"} if promotes else None)
        answer = send(server, one._replace(path=one.path.replace("0" * 12, made)))
        if answer.status == 503:
            assert answer.json["code"] == "damaged"
            found.add(operation)
    assert {
        "GET /v1/audit", "POST /v1/keys", "POST /v1/keys/{id}/rotate",
        "POST /v1/keys/{id}/revoke", "POST /v1/lines/{name}/promote",
    } <= found  # fmt: skip
    assert all("503" in operations[operation] for operation in found)


def test_who_is_counted_may_be_told_that_there_is_no_room_for_it(operations: Any) -> None:
    told = {operation for operation, responses in operations.items() if "503" in responses}
    assert told == {operation for operation, responses in operations.items() if "429" in responses}
