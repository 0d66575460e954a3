"""What is refused costs its sender its bytes, so that a day ends for who sends nothing else."""

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import orjson
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deployments.serving.http import INLINE_BYTES

INFER, LINE = "/v2/models/air-time/infer", "/v1/lines/air-time"
BAD = orjson.dumps({"inputs": [{"name": "numbers", "datatype": "FP64"}]})


class Served(NamedTuple):
    server: Any
    port: int

    def key(self, **limits: Any) -> tuple[str, dict[str, str]]:
        asked = {"tenant": "t", "scopes": ["predict:*"], "limits": limits}
        found = self.server.ask("POST", "/v1/keys", asked).json
        return found["id"], {"authorization": f"Bearer {found['key']}"}

    def used(self, identity: str) -> tuple[int, ...]:
        """Requests, refusals, rows and bytes that came."""
        usage = self.server.ask("GET", "/v1/usage").json["usage"]
        [one] = [one for one in usage if one["key"] == identity and one["line"] == "air-time"]
        return one["requests"], one["refused"], one["rows"], one["bytes_in"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("metering") / "repository"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with begun(root, "--grpc-port", f"{port}") as server:
        table().place(root, "1")
        assert server.load(table(), "1").status == 200
        assert server.promote("air-time", "1").status == 200
        yield Served(server, port)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, BAD),
        (INFER, b"{" + b" " * INLINE_BYTES),
        (f"{LINE}/predict", b"no record"),
        (f"{LINE}/explain", b"no record"),
        (f"{LINE}/explain", orjson.dumps([{"distance": 3, "hour": 4}] * 2)),
    ],
)
def test_what_cannot_be_read_counts_until_the_day_is_used_up(
    served: Served, path: str, body: bytes
) -> None:
    identity, key = served.key(daily_bytes=3 * len(body))
    sent = {"content_type": "application/json", **key}
    found = [served.server.ask("POST", path, body, **sent) for _ in range(5)]
    assert [one.status for one in found] == [400, 400, 400, 429, 429]
    assert found[3].json["code"] == "quota_exceeded"
    assert served.used(identity) == (0, 2, 0, 3 * len(body))


def test_it_counts_over_grpc(served: Served) -> None:
    wrong = service_pb2.ModelInferRequest(model_name="air-time")
    wrong.inputs.add(name="numbers", datatype="FP64", shape=[1, 2])
    size = wrong.ByteSize()
    identity, key = served.key(daily_bytes=2 * size)
    codes = []
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(wrong, metadata=tuple(key.items()))
            codes.append(caught.value.code().name)
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"]
    assert served.used(identity) == (0, 1, 0, 2 * size)


def test_what_is_computed_counts_once(served: Served) -> None:
    identity, key = served.key()
    one = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
    small = orjson.dumps({"inputs": [one]})
    record = orjson.dumps({"distance": 3, "hour": 4})
    asked = [
        (INFER, small, {}),
        (INFER, small, {"origin": "https://elsewhere"}),
        (INFER, small + b" " * INLINE_BYTES, {}),
        (f"{LINE}/predict", record, {}),
    ]
    for path, body, more in asked:
        sent = {"content_type": "application/json", **key, **more}
        assert served.server.ask("POST", path, body, **sent).status == 200
    assert served.used(identity) == (4, 0, 4, sum(len(body) for _, body, _ in asked))
