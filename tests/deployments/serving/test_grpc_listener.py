"""How gRPC listens: a real server, on ports and over TLS, and what it takes."""

import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deployments.serving.grpc_listener import MOST_STREAMS, UNREAD_BYTES
from tests.deployments.serving.spoken import (
    METHOD,
    SETTINGS,
    Raw,
    Spoken,
    message,
    prefixed,
)
from tests.production.certificates import write_certificates


def test_half_a_message_is_cut_off(spoken: Spoken) -> None:
    call = Raw(spoken.port, METHOD, spoken.server.bearer)
    call.send(prefixed(90_000, bytes(1000)))
    answer, settings = b"", []
    for kind, _, content in call.frames():
        answer += content
        if kind == SETTINGS:
            settings += [content[at : at + 6] for at in range(0, len(content), 6)]
        if b"the message did not arrive in time" in answer:
            break
    else:
        pytest.fail("the connection ended without a word")
    call.close()
    told = [(int.from_bytes(one[:2]), int.from_bytes(one[2:])) for one in settings]
    assert (3, MOST_STREAMS) in told  # SETTINGS_MAX_CONCURRENT_STREAMS
    assert all(most <= UNREAD_BYTES for name, most in told if name == 4)  # ..._INITIAL_WINDOW_SIZE


def test_a_port_that_is_taken_stops_the_start(spoken: Spoken, tmp_path: Any, serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="gRPC cannot listen"):
            serve(tmp_path / "repository", "--grpc-port", port)


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


def test_a_large_or_compressed_message_is_refused(spoken: Spoken) -> None:
    large = message(parameters={"pad": {"string_param": "x" * 100_001}})
    assert spoken.refusal(large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    metadata = tuple(spoken.server.bearer.items())
    with pytest.raises(grpc.RpcError) as caught:
        spoken.stub.ModelInfer(large, metadata=metadata, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
