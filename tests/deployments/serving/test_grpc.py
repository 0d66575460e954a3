"""The protocol over gRPC, asked by Triton's own client: a real server, its HTTP side beside it."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deployments.serving.elements import pack
from deployments.serving.grpc_listener import MOST_STREAMS
from deployments.serving.http import INLINE_BYTES
from tests.deployments.serving.datatypes import EveryDatatype
from tests.production.certificates import write_certificates


class Spoken:
    """A server that also speaks gRPC, and Triton's client of it."""

    def __init__(self, server: Any, port: int) -> None:
        self.server, self.port = server, port
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def infer(self, line: str, given: list[Any], version: str = "", **more: Any) -> Any:
        headers = {**self.server.bearer, **more.pop("headers", {})}
        return self.client.infer(line, given, version, headers=headers, **more)

    def refusal(self, request: Any, **headers: str) -> grpc.RpcError:
        metadata = {**self.server.bearer, **headers}
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.ModelInfer(request, metadata=tuple(metadata.items()))
        return caught.value


@pytest.fixture(scope="module")
def spoken(
    tmp_path_factory: pytest.TempPathFactory, serve: Any, table: Any, every: Any
) -> Iterator[Spoken]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = tmp_path_factory.mktemp("grpc") / "repository"
    versions = [(table(), "1"), (table(10.0), "2"), (every(), "1")]
    for version, number in versions:
        version.place(root, number)
    server = serve(root, "--grpc-port", str(port), "--max-body", "100000", "--body-seconds", "2")
    try:
        for version, number in versions:
            assert server.load(version, number).status == 200
        for line in ("air-time", "every"):
            assert server.promote(line, "1").status == 200
        found = Spoken(server, port)
        yield found
        found.client.close()
        found.channel.close()
    finally:
        assert server.stop() == 0


def numbers(values: Any) -> Any:
    array = np.array(values, np.float32)
    given = triton.InferInput("numbers", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return given


def message(**changes: Any) -> Any:
    """A request in typed contents, changed."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="numbers", datatype="FP32", shape=[1, 2]
    )
    tensor.contents.fp32_contents.extend([3, 4])
    for name, value in changes.pop("tensor", {}).items():
        if name == "shape":
            del tensor.shape[:]
            tensor.shape.extend(value)
        elif name == "contents":
            tensor.contents.CopyFrom(service_pb2.InferTensorContents(**value))
        else:
            setattr(tensor, name, value)
    return service_pb2.ModelInferRequest(
        **{"model_name": "air-time", "inputs": [tensor], **changes}
    )


def test_triton_client_infers(spoken: Spoken) -> None:
    for version, bias in (("", 0), ("1", 0), ("2", 10)):
        wanted = [triton.InferRequestedOutput("prediction")]
        found = spoken.infer(
            "air-time", [numbers([[1, 2], [3, 4]])], version, outputs=wanted, request_id="r-1"
        )
        np.testing.assert_array_equal(found.as_numpy("prediction"), [5 + bias, 11 + bias])
        answer = found.get_response()
        assert (answer.id, answer.model_version) == ("r-1", version or "1")


def test_every_datatype_in_raw_contents(spoken: Spoken) -> None:
    given, features = [], EveryDatatype()
    for spec in features.inputs:
        one = triton.InferInput(spec.name, [3, 2], spec.datatype)
        one.set_data_from_numpy(features.tensors(3)[spec.name])
        given.append(one)
    found = spoken.infer("every", given).as_numpy("prediction")
    assert found.tolist() == [len(features.inputs)] * 3


def test_every_datatype_in_typed_contents(spoken: Spoken) -> None:
    fields = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents",
        **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
        **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    }  # fmt: skip
    request = service_pb2.ModelInferRequest(model_name="every")
    half = request.inputs.add(name="fp16", datatype="FP16", shape=[1, 2])
    for spec in EveryDatatype().inputs:
        if spec.datatype != "FP16":
            one = request.inputs.add(name=spec.name, datatype=spec.datatype, shape=[1, 2])
            getattr(one.contents, fields[spec.datatype]).extend([0, 1])
    assert spoken.refusal(request).details() == "input 'fp16': FP16 takes raw contents"
    request.inputs.remove(half)
    # All the others were read.
    assert spoken.refusal(request).details() == "missing input fp16"
    request.inputs[1].contents.uint_contents[1] = 256
    assert "out of range" in spoken.refusal(request).details()


def test_typed_contents_are_answered_in_raw_ones(spoken: Spoken) -> None:
    metadata = tuple(spoken.server.bearer.items())
    answer = spoken.stub.ModelInfer(message(id="x"), metadata=metadata)
    assert answer.raw_output_contents[0] == pack(np.array([11], np.float32))
    assert (answer.outputs[0].name, list(answer.outputs[0].shape)) == ("prediction", [1])


def test_a_large_message_in_typed_contents_is_answered(spoken: Spoken) -> None:
    values = np.arange(24_000, dtype=np.float32)
    large = message(tensor={"shape": [12_000, 2], "contents": {"fp32_contents": values.tolist()}})
    assert large.ByteSize() > INLINE_BYTES
    answer = spoken.stub.ModelInfer(large, metadata=tuple(spoken.server.bearer.items()))
    short = spoken.infer("air-time", [numbers(values.reshape(-1, 2)[:1000])])
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    np.testing.assert_array_equal(found[:1000], short.as_numpy("prediction"))
    assert len(found) == 12_000
    del large.inputs[0].contents.fp32_contents[-1]
    assert "23999 values, not 24000" in spoken.refusal(large).details()


def test_triton_client_reads_metadata(spoken: Spoken) -> None:
    client, headers = spoken.client, spoken.server.bearer
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("air-time", headers=headers)
    assert client.is_model_ready("air-time", "2", headers=headers)
    assert not client.is_model_ready("air-time", "3", headers=headers)
    assert not client.is_model_ready("nothing", headers=headers)
    assert client.get_server_metadata(headers=headers).name == "modelmint"
    found = client.get_model_metadata("air-time", headers=headers)
    assert list(found.versions) == ["1", "2"]
    assert [(i.name, i.datatype, list(i.shape)) for i in found.inputs] == [
        ("numbers", "FP32", [-1, 2])
    ]


def test_the_answer_names_the_version_and_the_request(spoken: Spoken) -> None:
    metadata = {**spoken.server.bearer, "x-request-id": "caller:1"}
    _, call = spoken.stub.ModelInfer.with_call(message(), metadata=tuple(metadata.items()))
    trailers = {one.key: one.value for one in call.trailing_metadata()}
    over_http = spoken.server.ask(
        "POST", "/v1/lines/air-time/predict", {"distance": 3, "hour": 4}
    ).headers
    assert trailers["x-request-id"] == "caller:1"
    metadata = tuple(spoken.server.bearer.items())
    _, call = spoken.stub.ModelInfer.with_call(message(id="caller:2"), metadata=metadata)
    assert ("x-request-id", "caller:2") in [(m.key, m.value) for m in call.trailing_metadata()]
    for name in ("modelmint-model", "modelmint-version", "modelmint-digest"):
        assert trailers[name] == over_http[name]


def test_a_key_is_needed_and_bounded(spoken: Spoken) -> None:
    made = spoken.server.ask("POST", "/v1/keys", {"tenant": "a", "scopes": ["predict:every"]})
    limits = {"tenant": "b", "scopes": ["predict:*"], "limits": {"daily_rows": 1}}
    few = spoken.server.ask("POST", "/v1/keys", limits)
    for bearer, code, ours in (
        ("", grpc.StatusCode.UNAUTHENTICATED, "no_key"),
        ("Bearer mm_000000000000_x", grpc.StatusCode.UNAUTHENTICATED, "unknown_key"),
        (f"Bearer {made.json['key']}", grpc.StatusCode.PERMISSION_DENIED, "forbidden"),
    ):
        refusal = spoken.refusal(message(), authorization=bearer)
        assert refusal.code() == code
        assert dict(refusal.trailing_metadata())["modelmint-code"] == ours
    bearer = {"authorization": f"Bearer {few.json['key']}"}
    spoken.stub.ModelInfer(message(), metadata=tuple(bearer.items()))
    refusal = spoken.refusal(message(), **bearer)
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(refusal.trailing_metadata())["retry-after"]) > 0


RAW = np.array([[3, 4]], np.float32).tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": []}, "missing input numbers"),
        ({"tensor": {"name": "other"}}, "unknown input 'other'"),
        ({"tensor": {"datatype": "FP64"}}, "must have datatype FP32"),
        ({"tensor": {"shape": [-1, 2]}}, "has shape [-1, 2]"),
        ({"tensor": {"shape": [2**62, 2]}}, "2 values, not 9223372036854775808"),
        ({"tensor": {"shape": []}}, "has shape []"),
        ({"tensor": {"contents": {}}}, "0 values, not 2"),
        ({"tensor": {"contents": {"int_contents": [3, 4]}}}, "0 values, not 2"),
        ({"raw_input_contents": [RAW]}, "both contents and raw contents"),
        ({"raw_input_contents": [RAW, RAW]}, "2 raw contents for 1 inputs"),
        ({"tensor": {"contents": {}}, "raw_input_contents": [RAW[:7]]}, "takes 8 bytes"),
        ({"outputs": [{"name": "other"}]}, "unknown output 'other'"),
        ({"outputs": [{"name": "prediction"}] * 2}, "asked for twice"),
        ({"model_version": "../1"}, "is not loaded"),
        ({"model_name": "nothing"}, "no model 'nothing' is loaded"),
    ],
)
def test_a_wrong_request_is_refused(spoken: Spoken, changes: dict[str, Any], words: str) -> None:
    refusal = spoken.refusal(message(**changes))
    missing = "loaded" in words
    assert refusal.code() == grpc.StatusCode[("NOT_FOUND" if missing else "INVALID_ARGUMENT")]
    assert words in refusal.details()


def test_a_large_or_compressed_message_is_refused(spoken: Spoken) -> None:
    large = message(parameters={"pad": {"string_param": "x" * 100_001}})
    assert spoken.refusal(large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    metadata = tuple(spoken.server.bearer.items())
    with pytest.raises(grpc.RpcError) as caught:
        spoken.stub.ModelInfer(large, metadata=metadata, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"


METHOD = "/inference.GRPCInferenceService/ModelInfer"


def test_nothing_is_read_of_who_shows_no_key(spoken: Spoken) -> None:
    # Whoever reads it finds that it is too large.
    large = message(parameters={"pad": {"string_param": "x" * 5_000_000}})
    for bearer in ("", "Bearer mm_000000000000_x"):
        refusal = spoken.refusal(large, authorization=bearer)
        assert refusal.code() == grpc.StatusCode.UNAUTHENTICATED
    assert spoken.refusal(large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    unread = spoken.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    found = service_pb2.ServerLiveResponse.FromString(unread(large.SerializeToString()))
    assert found.live


@pytest.mark.parametrize(
    ("known", "code"),
    [
        (True, grpc.StatusCode.DEADLINE_EXCEEDED),
        (False, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_a_call_without_its_message_is_cut_off(
    spoken: Spoken, known: bool, code: grpc.StatusCode
) -> None:
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    metadata = tuple(spoken.server.bearer.items()) if known else ()
    call = spoken.channel.stream_unary(METHOD).future(nothing(), metadata=metadata)
    try:
        assert call.code() == code  # waits for it
        assert ("modelmint-code", "timeout" if known else "no_key") in call.trailing_metadata()
    finally:
        ended.set()
    metadata = tuple(spoken.server.bearer.items())
    empty = spoken.channel.stream_unary(METHOD).future(iter(()), metadata=metadata)
    assert empty.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert empty.details() == "the call has no message"
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
    assert "Traceback" not in spoken.server.log


def test_half_a_message_is_cut_off(spoken: Spoken) -> None:
    def literal(name: str, value: str) -> bytes:
        return b"\x00" + b"".join(bytes([len(x)]) + x.encode() for x in (name, value))

    def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
        return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content

    fields = {
        ":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": "a",
        "te": "trailers", "content-type": "application/grpc", **spoken.server.bearer,
    }  # fmt: skip
    head = b"".join(literal(name, value) for name, value in fields.items())
    half = b"\x00" + (90_000).to_bytes(4) + bytes(1000)
    with socket.create_connection(("127.0.0.1", spoken.port), timeout=60) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, head) + frame(0, 0, 1, half))
        answer = b""
        while b"the message did not arrive in time" not in answer:
            more = connection.recv(4096)
            assert more
            answer += more
    most = b"\x00\x03" + MOST_STREAMS.to_bytes(4)  # SETTINGS_MAX_CONCURRENT_STREAMS
    assert most in answer


def test_calls_are_counted_with_those_of_http(spoken: Spoken) -> None:
    def rows() -> int:
        usage = spoken.server.ask("GET", "/v1/usage").json["usage"]
        return sum(one["rows"] for one in usage if one["line"] == "every")

    before, features = rows(), EveryDatatype()
    given = []
    for spec in features.inputs:
        one = triton.InferInput(spec.name, [5, 2], spec.datatype)
        one.set_data_from_numpy(features.tensors(5)[spec.name])
        given.append(one)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: spoken.infer("every", given), range(8)))
    assert rows() == before + 40


def test_a_port_that_is_taken_stops_the_start(spoken: Spoken, tmp_path: Any, serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="gRPC cannot listen"):
            serve(tmp_path / "repository", "--grpc-port", port)


def test_a_canary_takes_its_share_and_requests_are_in_the_journal(spoken: Spoken) -> None:
    server, path = spoken.server, "/v1/lines/air-time/canary"
    assert server.ask("POST", path, {"version": "2", "percent": 100}).status == 200
    try:
        metadata = tuple({**server.bearer, "x-request-id": "over-grpc"}.items())
        assert spoken.stub.ModelInfer(message(), metadata=metadata).model_version == "2"
        assert spoken.stub.ModelInfer(message(model_version="1"), metadata=metadata)
        counted = server.ask("GET", path).json
        assert counted["canary"]["comparison"]["canary"]["requests"] == 1
    finally:
        server.ask("POST", f"{path}/end", {})
    found = server.ask("GET", "/v1/requests/over-grpc").json["requests"]
    assert [one["version"] for one in found] == ["2", "1"]


def test_it_is_spoken_over_tls_and_a_replaced_certificate_counts(
    start: Any, tmp_path: Path
) -> None:
    old = write_certificates(tmp_path / "old", "127.0.0.1")
    new = write_certificates(tmp_path / "new", "127.0.0.1")
    used = [tmp_path / name for name in ("cert", "key")]

    def put(files: dict[str, Path]) -> None:
        for path, name in zip(used, ("cert", "key"), strict=True):
            path.write_bytes(files[name].read_bytes())

    def spoken_to(authority: Path) -> bool:
        trusted = grpc.ssl_channel_credentials(authority.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5).live)
            except grpc.RpcError:
                return False

    put(old)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pair = ("--certificate", str(used[0]), "--private-key", str(used[1]))
    start(tmp_path / "repository", "--grpc-port", str(port), *pair)
    assert spoken_to(old["ca"])
    assert not spoken_to(new["ca"])
    put(new)
    assert spoken_to(new["ca"])
    assert not spoken_to(old["ca"])


def test_workers_share_the_port(start: Any, table: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    version = table()
    version.place(tmp_path / "repository", "1")
    server = start(tmp_path / "repository", "--grpc-port", str(port), "--workers", "2")
    assert server.load(version, "1").status == 200
    assert server.promote("air-time", "1").status == 200
    metadata = tuple(server.bearer.items())
    for _ in range(12):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
    text = server.ask("GET", "/metrics").body.decode()
    assert 'modelmint_rows_total{line="air-time",verb="infer",version="1"} 12.0' in text


def test_damaged_messages_never_fail_the_server(spoken: Spoken) -> None:
    random, whole = np.random.default_rng(5), message(id="x").SerializeToString()
    call = spoken.channel.unary_unary(METHOD)
    metadata, codes = tuple(spoken.server.bearer.items()), set()
    for _ in range(200):
        body = bytearray(whole)
        for at in random.integers(0, len(body), random.integers(1, 4)):
            body[at] = random.integers(0, 256)
        codes.add(call.future(bytes(body), metadata=metadata, timeout=20).code())
    expected = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert codes == expected
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
    assert "Traceback" not in spoken.server.log
