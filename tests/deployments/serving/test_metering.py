"""What is refused costs its sender its bytes, so that a day ends for who sends nothing else."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import orjson
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deployments.serving.http import INLINE_BYTES
from deployments.serving.inference import DEFAULTS, Inference
from deployments.serving.keys import Keys
from deployments.serving.ledger import EVERY, Ledger
from deployments.serving.protocol import ProtocolError

LARGEST = 300_000
INFER, LINE = "/v2/models/air-time/infer", "/v1/lines/air-time"
BAD = orjson.dumps({"inputs": [{"name": "numbers", "datatype": "FP64"}]})


class Served(NamedTuple):
    server: Any
    port: int

    def key(self, **limits: Any) -> tuple[str, dict[str, str]]:
        asked = {"tenant": "t", "scopes": ["predict:*"], "limits": limits}
        found = self.server.ask("POST", "/v1/keys", asked).json
        return found["id"], {"authorization": f"Bearer {found['key']}"}

    def used(self, identity: str, line: str = "air-time") -> tuple[int, ...]:
        """Requests, refusals, rows and bytes that came."""
        usage = self.server.ask("GET", "/v1/usage").json["usage"]
        [one] = [one for one in usage if (one["key"], one["line"]) == (identity, line)]
        return one["requests"], one["refused"], one["rows"], one["bytes_in"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("metering") / "repository"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bounds = "--max-body", f"{LARGEST}", "--body-seconds", "2"
    with begun(root, "--grpc-port", f"{port}", *bounds) as server:
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


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"no JSON", 400, EVERY),
        (b'{"model": "\xff"}', 400, EVERY),
        (b'{"model": "air-time", "prompt": "a", "logit_bias": {"1": 1}}', 400, EVERY),
        (b'{"model": "nothing", "prompt": "a"}', 404, EVERY),
        (b'{"model": "air-time", "prompt": "a"}', 400, "air-time"),
    ],
)
def test_a_completion_that_is_none_counts_too(
    served: Served, body: bytes, status: int, line: str
) -> None:
    identity, key = served.key(daily_bytes=2 * len(body))
    sent = {"content_type": "application/json", **key}
    found = [served.server.ask("POST", "/v1/completions", body, **sent) for _ in range(4)]
    assert [one.status for one in found] == [status, status, 429, 429]
    assert found[2].json["error"]["code"] == "quota_exceeded"
    assert served.used(identity, line)[3] == 2 * len(body)


@pytest.mark.parametrize(("chunks", "status"), [(3, 408), (7, 413)])
def test_a_body_that_is_refused_part_way_counts(served: Served, chunks: int, status: int) -> None:
    identity, key = served.key(daily_bytes=100_000)
    chunk = b" " * 50_000
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: {key['authorization']}\r\n"
    head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.server.port), 30) as talk:
        talk.sendall(head.encode() + chunks * (b"%x\r\n%b\r\n" % (len(chunk), chunk)))
        assert talk.recv(65_536).startswith(b"HTTP/1.1 %d " % status)
    counted = served.used(identity)
    assert counted[:3] == (0, 0, 0)
    assert 100_000 < counted[3] <= chunks * len(chunk)
    # Nothing more is read of that key on this day.
    refused = served.server.ask("POST", INFER, b"{}", content_type="application/json", **key)
    assert (refused.status, refused.json["code"]) == (429, "quota_exceeded")
    assert served.used(identity) == (0, 1, 0, counted[3])


def test_no_message_at_all_counts_over_grpc(served: Served) -> None:
    nonsense = b"\xff" * 100
    identity, key = served.key(daily_bytes=2 * len(nonsense))
    codes = []
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                infer(nonsense, metadata=tuple(key.items()))
            codes.append(caught.value.code().name)
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"]
    assert served.used(identity, EVERY) == (0, 1, 0, 2 * len(nonsense))


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


@pytest.mark.parametrize(
    ("status", "hurried", "counts"),
    [
        (400, False, True), (429, False, False), (502, False, False), (503, False, False),
        (504, False, False), (504, True, True),
    ],
)  # fmt: skip
def test_what_this_server_fails_at_costs_nothing(
    tmp_path: Path, status: int, hurried: bool, counts: bool
) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", ("predict:*",))
    ledger = Ledger(tmp_path / "usage")
    inference = Inference(ledger, DEFAULTS)
    with (
        contextlib.closing(inference),
        pytest.raises(ProtocolError),
        inference.unnamed(key, 10, "digits", hurried=hurried),
    ):
        raise ProtocolError(status, "as it happens")
    assert [one["bytes_in"] for one in ledger.usage(1)] == [10] * counts
