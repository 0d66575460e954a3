"""Traces as a collector gets them: a real server sends OTLP to one in this process."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deployments.serving.http import INLINE_BYTES
from tests.conftest import ROOT

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{PARENT}-01"


class Span(NamedTuple):
    """What a collector is told, ids as hexadecimal digits."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    told: dict[str, Any]
    said: str
    """What is said of its status."""


class Collector:
    """Speaks OTLP over HTTP and keeps what comes."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def keep(self, request: Any) -> None:
        for resource in request.resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                self.spans += map(_span, scope.spans)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def _span(one: Any) -> Span:
    told = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in one.attributes}
    ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
    return Span(
        one.name, *ids, one.start_time_unix_nano, one.end_time_unix_nano, told, one.status.message
    )


@pytest.fixture(scope="module")
def collected(
    tmp_path_factory: pytest.TempPathFactory, serve: Any, table: Any, slow: Any
) -> Iterator[tuple[Collector, str]]:
    """What a collector has after one request of each kind to a server, and the server's key."""
    collector = Collector()
    root = tmp_path_factory.mktemp("traced") / "repository"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url}
    server = serve(root, "--grpc-port", str(port), environment=where)
    try:
        for version in (table(), slow()):
            version.place(root, "1")
            assert server.load(version, "1").status == 200
            assert server.promote(version.line, "1").status == 200
        body = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2]}]}
        body["inputs"][0]["data"] = [3, 4]
        path = "/v2/models/air-time/infer"
        assert server.ask("POST", path, body, traceparent=HEADER, x_request_id="r1").status == 200
        much = orjson.dumps(body) + b" " * INLINE_BYTES
        kind = {"content_type": "application/json", "traceparent": HEADER}
        assert server.ask("POST", path, much, x_request_id="much", **kind).status == 200
        record = {"distance": 3, "hour": 4}
        assert server.ask("POST", "/v1/lines/air-time/predict", record).status == 200
        bad = server.ask("POST", "/v1/lines/air-time/predict", {"distance": "secret", "hour": 4})
        assert bad.status == 400
        assert "secret" in bad.json["error"]
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(server.ask, "POST", path.replace("air-time", "slow"), body | {
                "inputs": [body["inputs"][0] | {"data": [n, 4]}]}) for n in range(4)]  # fmt: skip
            assert {one.result().status for one in asked} == {200}
        assert server.ask("GET", "/v2/models/nobody").status == 404
        assert server.ask("GET", "/v2", authorization="").status == 401
        given = triton.InferInput("numbers", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[3, 4]], np.float32))
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.infer("air-time", [given], headers={**server.bearer, "traceparent": HEADER})
            client.start_stream(lambda *_, **__: None, headers=server.bearer)
            for line in ("air-time", "nothing"):
                client.async_stream_infer(line, [given], request_id=line)
            client.stop_stream()
            assert client.is_server_live()
            with pytest.raises(triton.InferenceServerException, match="key"):
                client.get_server_metadata()
        key = server.key
    finally:
        assert server.stop() == 0  # it sends what is left
    yield collector, key
    collector.server.shutdown()
    collector.server.server_close()


def test_much_json_is_decoded_beside_the_request(collected: tuple[Collector, str]) -> None:
    collector, _ = collected
    [inferred] = [s for s in collector.spans if s.told.get("x.request-id") == "much"]
    [decoded] = [s for s in collector.named("decode") if s.parent == inferred.id]
    assert decoded.told["modelmint.rows"] == 1
    assert decoded.told["modelmint.bytes"] > INLINE_BYTES


def test_a_request_joins_the_callers_trace(collected: tuple[Collector, str]) -> None:
    collector, _ = collected
    assert collector.services == {"modelmint"}
    [inferred] = [s for s in collector.spans if s.told.get("x.request-id") == "r1"]
    assert inferred.name == "POST /v2/models/{name}/infer"
    assert (inferred.trace, inferred.parent) == (TRACE, PARENT)
    assert inferred.told["http.response.status_code"] == 200
    assert inferred.told["modelmint.version"] == "1"
    assert len(inferred.told["modelmint.digest"]) == 64
    [computed] = [s for s in collector.named("compute") if s.parent == inferred.id]
    assert computed.trace == TRACE
    assert inferred.start <= computed.start <= computed.end <= inferred.end


def test_a_call_of_grpc_joins_it_too(collected: tuple[Collector, str]) -> None:
    collector, _ = collected
    [called] = collector.named("inference.GRPCInferenceService/ModelInfer")
    assert (called.trace, called.parent) == (TRACE, PARENT)
    assert called.told["rpc.grpc.status_code"] == 0
    assert called.told["modelmint.version"] == "1"
    assert [s for s in collector.named("compute") if s.parent == called.id]


def test_each_request_of_a_stream_is_told(collected: tuple[Collector, str]) -> None:
    collector, _ = collected
    found = collector.named("inference.GRPCInferenceService/ModelStreamInfer")
    codes = {one.told["x.request-id"]: one.told["rpc.grpc.status_code"] for one in found}
    assert codes == {"air-time": 0, "nothing": 5}  # NOT_FOUND


def test_decoding_waiting_and_computing_are_told_apart(collected: tuple[Collector, str]) -> None:
    collector, _ = collected
    predicted, refused = collector.named("POST /v1/lines/{name}/predict")
    assert refused.told["http.response.status_code"] == 400
    assert predicted.parent == ""
    [decoded] = [s for s in collector.named("decode") if s.parent == predicted.id]
    assert decoded.told["modelmint.rows"] == 1
    batched = [s for s in collector.named("POST /v2/models/{name}/infer") if s.trace != TRACE]
    assert len(batched) == 4
    for request in batched:
        [waited] = [s for s in collector.named("queue") if s.parent == request.id]
        [computed] = [s for s in collector.named("compute") if s.parent == request.id]
        assert request.start <= waited.start <= waited.end == computed.start <= computed.end
        assert computed.told["modelmint.requests"] >= 1


def test_refusals_are_told_and_strangers_are_not(collected: tuple[Collector, str]) -> None:
    collector, key = collected
    [unknown] = collector.named("GET /v2/models/{name}")
    assert unknown.told["http.response.status_code"] == 404
    assert collector.named("GET /v2") == []
    assert {s.name for s in collector.spans if "GRPC" in s.name} == {
        f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")
    }
    # Neither keys nor what was sent.
    assert key not in repr(collector.spans)
    assert "secret" not in repr(collector.spans)
    assert {n for s in collector.spans for n in s.told if "body" in n or "header" in n} == set()


def test_a_collector_that_is_away_fails_no_request(start: Any, table: Any, tmp_path: Path) -> None:
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    server = start(tmp_path / "repository", environment=away)
    assert server.ask("GET", "/v2").status == 200
    assert server.stop() == 0


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = "import sys; import deployments.serving.worker, deployments.serving.app;"
    code += "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
