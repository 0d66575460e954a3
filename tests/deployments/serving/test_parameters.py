"""What a parameter asks for is done, or refused by name; over HTTP and gRPC alike."""

import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import jsonschema
import numpy as np
import orjson
import pytest
import tritonclient.grpc as spoken
import tritonclient.http as asked
from tritonclient.utils import InferenceServerException

from deployments.serving.http import INLINE_BYTES
from deployments.serving.openapi_schemas import SCHEMAS
from deployments.serving.parameters import FINAL, check, patience
from tests.deployments.serving.spoken import message

INFER = "/v2/models/{}/infer"
ROW = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class Both(NamedTuple):
    """Triton's clients of one server, and what its HTTP and gRPC are called in tests."""

    server: Any
    clients: dict[str, tuple[Any, Any]]
    port: int
    """Of gRPC."""


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any, slow: Any
) -> Iterator[Both]:
    root = tmp_path_factory.mktemp("parameters") / "repository"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with begun(root, "--grpc-port", f"{port}", "--no-cache", "slow") as server:
        for version in (table(), slow()):
            version.place(root, "1")
            assert server.load(version, "1").status == 200
            assert server.promote(version.line, "1").status == 200
        with (
            asked.InferenceServerClient(f"127.0.0.1:{server.port}") as http,
            spoken.InferenceServerClient(f"127.0.0.1:{port}") as client,
        ):
            yield Both(server, {"http": (asked, http), "grpc": (spoken, client)}, port)
        assert "Traceback" not in server.log


def infer(both: Both, kind: str, line: str = "air-time", place: str = "", **more: Any) -> Any:
    """What Triton's client is answered; its tensor of that place is to be in shared memory."""
    module, client = both.clients[kind]
    given, wanted = module.InferInput("numbers", [1, 2], "FP32"), None
    given.set_data_from_numpy(np.array([[3, 4]], np.float32))
    if place == "input":
        given.set_shared_memory("region", 8)
    if place == "output":
        wanted = module.InferRequestedOutput("prediction")
        wanted.set_shared_memory("region", 4)
    if place == "classes":
        wanted = module.InferRequestedOutput("prediction", class_count=1)
    outputs = None if wanted is None else [wanted]
    headers = both.server.bearer
    return client.infer(line, [given], outputs=outputs, headers=headers, **more)


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"place": "input"}, "': shared memory is not supported"),
        ({"place": "output"}, "': shared memory is not supported"),
        ({"place": "classes"}, "'classification': the classification extension is not supported"),
        ({"sequence_id": 7}, "'sequence_id': the sequence extension is not supported"),
        ({"sequence_id": "a"}, "'sequence_id': the sequence extension is not supported"),
        ({"priority": 1}, "'priority': it is not supported"),
        ({"parameters": {"top_k": 3}}, "'top_k': it is not supported"),
        ({"timeout": -1}, "timeout must be a number of microseconds"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(
    both: Both, kind: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(both, kind, **more)
    assert said in caught.value.message()
    assert infer(both, kind).as_numpy("prediction").tolist() == [11.0]


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_timeout_is_a_deadline(both: Both, kind: str) -> None:
    late = "the deadline passed before the answer"
    with pytest.raises(InferenceServerException, match=late):
        infer(both, kind, "slow", timeout=1)
    for timeout in (0, 30_000_000, 10**12):
        assert infer(both, kind, "slow", timeout=timeout).as_numpy("prediction").tolist() == [
            7 / 16
        ]


def test_a_timeout_counts_in_much_json_too(both: Both) -> None:
    body = orjson.dumps({"inputs": [ROW], "parameters": {"timeout": 1}}) + b" " * INLINE_BYTES
    path, kind = INFER.format("slow"), {"content_type": "application/json"}
    answer = both.server.ask("POST", path, body, **kind)
    assert (answer.status, answer.json["code"]) == (504, "deadline")


@pytest.mark.parametrize("sequence", [0, ""])
def test_what_changes_nothing_is_taken(both: Both, sequence: int | str) -> None:
    neutral = {"sequence_id": sequence, "sequence_start": False, "sequence_end": False}
    body = {"inputs": [ROW], "parameters": neutral | {"priority": 0, FINAL: True, "timeout": 0}}
    answer = both.server.ask("POST", INFER.format("air-time"), body)
    assert answer.json["outputs"][0]["data"] == [11.0]
    jsonschema.validate(body, SCHEMAS["InferRequest"])


@pytest.mark.parametrize(
    "given", [{"sequence_id": 7}, {"sequence_start": True}, {"priority": 1}, {FINAL: 1}, {"k": 1}]
)
def test_the_document_forbids_what_is_refused(both: Both, given: dict[str, Any]) -> None:
    body = {"inputs": [ROW], "parameters": given}
    assert both.server.ask("POST", INFER.format("air-time"), body).status == 400
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, SCHEMAS["InferRequest"])


def test_over_grpc_a_timeout_counts_from_when_the_call_came(both: Both) -> None:
    asked = message(model_name="slow")
    asked.parameters["timeout"].int64_param = 300_000

    def late() -> Iterator[bytes]:
        time.sleep(1)
        yield asked.SerializeToString()

    metadata = tuple(both.server.bearer.items())
    with grpc.insecure_channel(f"127.0.0.1:{both.port}") as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(late(), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("owner", ["input", "output"])
@pytest.mark.parametrize("name", [*SHARED, "timeout", "sequence_id", "binary_data_output"])
def test_a_tensor_has_few_parameters(owner: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^x has the parameter '{name}': "):
        check({name: 0}, owner, "x")


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, None])
def test_a_timeout_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        patience({"timeout": value})
