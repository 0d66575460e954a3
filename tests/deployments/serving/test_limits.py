"""Hostile requests over HTTP: each is refused in its own words, and the server goes on."""

import gzip
import http.client
import io
import re
import socket
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from PIL import Image

from tests.deployments.serving.bad import chunk, huge_image
from tests.deployments.serving.server import Answer

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
PREDICT = "/v1/lines/clothes/predict"


@pytest.fixture(autouse=True)
def healthy(shared: Any) -> Any:
    """Whatever a test sends, the next caller is answered and the log shows no failure of ours."""
    yield
    assert shared.ask("POST", INFER, GOOD).status == 200
    assert "Traceback" not in shared.log


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_unpacked(shared: Any, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    answer = shared.ask("POST", INFER, pack(orjson.dumps(GOOD)), content_encoding=encoding)
    assert answer.json["outputs"][0]["data"] == [11.0]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_triton_client_compresses(shared: Any, encoding: str) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{shared.port}") as client:
        given = triton.InferInput("numbers", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[3, 4]], np.float32))
        found = client.infer(
            "air-time", [given], headers=shared.bearer, request_compression_algorithm=encoding
        )
        assert found.as_numpy("prediction").tolist() == [11.0]


def test_a_compression_bomb_is_refused_before_it_is_unpacked(shared: Any) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    answer = shared.ask("POST", INFER, bomb, content_encoding="gzip")
    assert (answer.status, answer.json["code"]) == (413, "too_large")


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_a_stream_that_is_cut_or_goes_on_is_refused(shared: Any, end: bytes) -> None:
    packed = gzip.compress(orjson.dumps(GOOD))
    packed = packed + end if end else packed[:-9]
    answer = shared.ask("POST", INFER, packed, content_encoding="gzip")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zip", "x" * 5000])
def test_another_encoding_is_refused(shared: Any, encoding: str) -> None:
    answer = shared.ask("POST", INFER, GOOD, content_encoding=encoding)
    assert (answer.status, answer.json["code"]) == (415, "media_type")


def test_a_small_image_of_ten_gigabytes_is_refused_by_its_header(shared: Any) -> None:
    answer = shared.ask("POST", PREDICT, huge_image(), content_type="image/png")
    assert (answer.status, answer.json["code"]) == (400, "refused_request")
    assert "pixels" in answer.json["error"]


def test_an_image_with_a_bomb_beside_its_pixels_is_refused(shared: Any) -> None:
    stream = io.BytesIO()
    Image.new("L", (28, 28)).save(stream, "PNG")
    whole = stream.getvalue()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 90_000_000))
    assert len(bomb) < 100_000
    answer = shared.ask("POST", PREDICT, whole[:33] + bomb + whole[33:], content_type="image/png")
    assert answer.status == 400


@pytest.mark.parametrize("shape", [[-1, 2], [2**62, 2], [2**63, 2], [-(2**63), 2], [10**30, 2]])
def test_a_dimension_sizes_no_allocation(shared: Any, shape: list[int]) -> None:
    one = f'"name":"numbers","datatype":"FP32","shape":{shape}'
    for rest, raw in (('"data":[1,2]', b""), ('"parameters":{"binary_data_size":8}', b"\0" * 8)):
        text = f'{{"inputs":[{{{one},{rest}}}]}}'.encode()
        length = {"inference_header_content_length": str(len(text))}
        answer = shared.ask("POST", INFER, text + raw, **length)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "600001", "9" * 50, "x", "²"])
def test_a_wrong_deadline_is_refused(shared: Any, value: str) -> None:
    header = {"modelmint_timeout_ms": value.encode().decode("latin-1")}
    answer = shared.ask("POST", INFER, GOOD, **header)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def raw(server: Any, *parts: bytes) -> Answer:
    """What the server answers to hand-made parts of a request."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        for part in parts:
            connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


def headed(server: Any, line: str, *parts: bytes) -> Answer:
    """That, with a request line and our key before them."""
    head = f"{line}\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n"
    return raw(server, head.encode(), *parts)


POST = f"POST {INFER} HTTP/1.1"
BODY = orjson.dumps(GOOD)


def test_a_flood_of_tiny_chunks_is_one_body(shared: Any) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 20_000)
    answer = headed(shared, POST, b"transfer-encoding: chunked\r\n\r\n", chunks, b"0\r\n\r\n")
    assert answer.status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: -5\r\n\r\n",
        b"content-length: 99999999999999999999999\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"no colon\r\n\r\n",
    ],
)
def test_a_request_that_is_no_http_is_refused(shared: Any, head: bytes) -> None:
    named = b"x-request-id: mine\r\naccept: */*\r\n"
    refused(headed(shared, POST, named + head), 400, "invalid_http", "mine")


def refused(answer: Answer, status: int, code: str, identity: str | None = None) -> None:
    """Check that an answer refuses in the one form there is, and tells which request it was."""
    assert (answer.status, answer.json["code"]) == (status, code)
    assert set(answer.json) == {"error", "code", "request_id"}
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert re.fullmatch(identity or "[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if code == "invalid_http":
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "whole",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_another_protocol_is_refused(shared: Any, whole: bytes) -> None:
    refused(raw(shared, whole), 400, "invalid_http")


def test_long_headers_are_refused(shared: Any) -> None:
    # Sent at once they may come at once, and are bounded by what is read at once.
    answer = headed(shared, POST, b"x-long: " + b"x" * 200_000 + b"\r\n\r\n")
    assert answer.status in (400, 431)
    assert answer.json["code"] in ("invalid_request", "too_large")


WEBSOCKET = (
    b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("GET /v2/models/air-time/stream HTTP/1.1", 404, "not_found"),
        (f"GET {INFER} HTTP/1.1", 405, "method_not_allowed"),
        (f"{POST}", 400, "invalid_request"),
    ],
)
def test_a_websocket_is_refused(shared: Any, line: str, status: int, code: str) -> None:
    refused(headed(shared, line, WEBSOCKET), status, code)
    frame = b"\x81\x85\x01\x02\x03\x04igomn"
    refused(headed(shared, line, WEBSOCKET + frame), status, code)


def test_a_websocket_without_a_key_is_refused(shared: Any) -> None:
    refused(raw(shared, b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET), 401, "no_key")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/passwd",
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/air-time/versions/1%00/infer",
        "/v2/models/air-time%0d%0ax:%20y/infer",
        "//v2/models/air-time/infer",
        "/v2/models/" + "a" * 8000 + "/infer",
        "/v2/models/%c0%ae%c0%ae/infer",
    ],
)
def test_a_path_names_models_only(shared: Any, path: str) -> None:
    answer = shared.ask("POST", path, GOOD)
    assert answer.status in (404, 405)
    assert b"root:" not in answer.body
    assert len(answer.body) < 400
    assert "x" not in answer.headers


def test_a_megabyte_of_nesting_is_refused(shared: Any) -> None:
    for body in (b"[" * 90_000, b'{"a":' * 15_000, b'{"inputs":' + b"[" * 80_000):
        answer = shared.ask("POST", INFER, body)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def test_damaged_requests_never_fail_the_server(shared: Any, talk: Any, picture: bytes) -> None:
    random = np.random.default_rng(5)
    row = np.array([[3, 4]], np.float32)
    size = {"parameters": {"binary_data_size": row.nbytes}}
    one = {"name": "numbers", "datatype": "FP32", "shape": [1, 2]}
    text = orjson.dumps({"id": "x", "inputs": [one | size], "outputs": [{"name": "prediction"}]})
    length = {"inference_header_content_length": str(len(text))}
    record = orjson.dumps({"distance": 3, "hour": 4})
    asked = [
        (INFER, BODY, {"content_type": "application/json"}),
        (INFER, text + row.tobytes(), length),
        ("/v1/lines/air-time/predict", record, {"content_type": "application/json"}),
        ("/v1/lines/air-time/predict", b"distance,hour\n3,4\n", {"content_type": "text/csv"}),
        (PREDICT, picture, {"content_type": "image/png"}),
    ]
    connection, statuses = shared.connect(), set()
    for path, whole, headers in asked:
        for _ in range(60):
            body = bytearray(whole)
            for at in random.integers(0, len(body), random.integers(1, 5)):
                body[at] = random.integers(0, 256)
            if random.random() < 0.3:
                del body[random.integers(len(body) // 2, len(body)) :]
            answer = talk(connection, "POST", path, bytes(body), **shared.bearer, **headers)
            assert answer.status in (200, 400, 413, 422), (path, bytes(body), answer)
            assert answer.status == 200 or set(answer.json) == {"error", "code", "request_id"}
            statuses.add(answer.status)
    connection.close()
    assert {200, 400} <= statuses
