"""A real server, asked over HTTP by hand and by Triton's own client."""

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}


@pytest.fixture
def client(shared: Any) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{shared.port}") as client:
        client.register_plugin(Bearer(shared))
        yield client


class Bearer(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    """Has Triton's client show our key."""

    def __init__(self, server: Any) -> None:
        self.headers = server.bearer

    def __call__(self, request: Any) -> None:
        request.headers.update(self.headers)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_infers_numbers(client: Any, binary: bool) -> None:
    numbers = np.array([[1, 2], [3, 4]], np.float32)
    given = triton.InferInput("numbers", [2, 2], "FP32")
    given.set_data_from_numpy(numbers, binary_data=binary)
    wanted = triton.InferRequestedOutput("prediction", binary_data=binary)
    for version, bias in (("", 0), ("1", 0), ("2", 10)):
        found = client.infer("air-time", [given], version, [wanted], request_id="r-1")
        np.testing.assert_array_equal(found.as_numpy("prediction"), [5 + bias, 11 + bias])
        answer = found.get_response()
        assert (answer["id"], answer["model_version"]) == ("r-1", version or "1")


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_infers_images(client: Any, binary: bool) -> None:
    image = np.zeros((3, 1, 28, 28), np.uint8)
    given = triton.InferInput("image", [3, 1, 28, 28], "UINT8")
    given.set_data_from_numpy(image, binary_data=binary)
    found = client.infer("clothes", [given]).as_numpy("probabilities")
    np.testing.assert_allclose(found, np.full((3, 3), 1 / 3), atol=1e-6)


def test_triton_client_reads_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("air-time")
    assert client.is_model_ready("air-time", "2")
    assert not client.is_model_ready("air-time", "3")
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("clothes")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert client.get_model_metadata("air-time")["versions"] == ["1", "2"]
    index = {(m["name"], m["version"]): m for m in client.get_model_repository_index()}
    assert set(index) == {("air-time", "1"), ("air-time", "2"), ("clothes", "1")}
    assert {m["state"] for m in index.values()} == {"READY"}


def test_a_version_that_is_not_loaded_cannot_be_unloaded(
    start: Any, table: Any, tmp_path: Path
) -> None:
    version = table()
    version.place(tmp_path / "repository", "7")
    server = start(tmp_path / "repository")
    assert server.load(version, "7").json["digest"] == version.digest
    path, body = "/v2/repository/models/air-time/unload", {"parameters": {"version": "7"}}
    assert server.ask("POST", path, body).status == 200
    assert server.ask("POST", path, body).status == 404


def test_every_answer_names_the_version_and_the_request(shared: Any) -> None:
    record = {"distance": 3, "hour": 4}
    for path, body in ((INFER, GOOD), ("/v1/lines/air-time/predict", record)):
        answer = shared.ask("POST", path, body, x_request_id="caller:1")
        assert answer.status == 200
        assert answer.headers["modelmint-model"] == "air-time"
        assert answer.headers["modelmint-version"] == "1"
        assert re.fullmatch(r"[0-9a-f]{64}", answer.headers["modelmint-digest"])
        assert answer.headers["x-request-id"] == "caller:1"
        ids = {
            shared.ask("POST", path, body, x_request_id=bad).headers["x-request-id"]
            for bad in ("", "a b", "x" * 129, "<script>")
        }
        assert len(ids) == 4
        assert all(re.fullmatch(r"[0-9a-f]{32}", found) for found in ids)


def test_every_answer_has_the_requests_id_once(shared: Any) -> None:
    paths = shared.ask("GET", "/openapi.json").json["paths"]
    asked = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    asked += [("GET", "/openapi.json"), ("GET", "/nowhere"), ("PUT", "/v2"), ("POST", INFER)]
    statuses = set()
    for method, path in asked:
        for shown in (shared.bearer, {}):
            with contextlib.closing(shared.connect()) as talk:
                talk.request(
                    method,
                    path.replace("{name}", "nobody"),
                    headers={"x-request-id": "me-1", **shown},
                )
                answer = talk.getresponse()
                assert answer.msg.get_all("x-request-id") == ["me-1"], (method, path)
                statuses.add(answer.status)
    assert {200, 400, 401, 404, 405} <= statuses
    audited = shared.promote("air-time", "1")
    named = [one["request"] for one in shared.ask("GET", "/v1/audit").json["entries"]]
    assert audited.headers["x-request-id"] == named[-1]


def test_predict_reads_records_and_csv(shared: Any) -> None:
    path = "/v1/lines/air-time/versions/2/predict"
    answer = shared.ask("POST", path, {"distance": 3, "hour": 4})
    assert answer.json["predictions"] == [{"air_time": 21.0, "unit": "min"}]
    assert (answer.json["line"], answer.json["version"]) == ("air-time", "2")
    assert answer.json["digest"] == answer.headers["modelmint-digest"]
    csv = b"hour,distance\n4,3\n0,1\n"
    answer = shared.ask("POST", path, csv, content_type="text/csv; charset=utf-8")
    assert [p["air_time"] for p in answer.json["predictions"]] == [21.0, 11.0]


def test_predict_reads_an_image(shared: Any, picture: bytes) -> None:
    path = "/v1/lines/clothes/predict"
    answer = shared.ask("POST", path, picture, content_type="image/png")
    (found,) = answer.json["predictions"]
    assert found["kind"] == "coat"
    assert set(found["probabilities"]) == {"boot", "coat", "dress"}


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"{}", "application/json", "refused_request"),
        (b"[]", "application/json", "refused_request"),
        (b"3", "application/json", "refused_request"),
        (b"{", "application/json", "refused_request"),
        (b"distance\n3\n", "text/csv", "refused_request"),
        (b"distance,hour\n", "text/csv", "refused_request"),
        (b"", "text/csv", "refused_request"),
        (b'{"distance": null, "hour": null}', "application/json", "not_finite"),
    ],
)
def test_predict_refuses(shared: Any, body: bytes, media_type: str, code: str) -> None:
    answer = shared.ask("POST", "/v1/lines/air-time/predict", body, content_type=media_type)
    assert answer.json["code"] == code
    assert answer.status == (422 if code == "not_finite" else 400)


def test_predict_refuses_what_is_no_image(shared: Any, picture: bytes) -> None:
    for body in (b"", b"GIF89a", picture[:60]):
        answer = shared.ask("POST", "/v1/lines/clothes/predict", body, content_type="image/png")
        assert (answer.status, answer.json["code"]) == (400, "refused_request")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v2/", 404, "not_found"),
        ("GET", INFER, 405, "method_not_allowed"),
        ("DELETE", "/v2", 405, "method_not_allowed"),
        ("POST", "/v2/models/nothing/infer", 404, "unknown_model"),
        ("GET", "/v2/models/nothing", 404, "unknown_model"),
        ("POST", "/v2/models/air-time/versions/9/infer", 404, "version_not_loaded"),
        ("POST", "/v2/models/air-time/versions/..%2F1/infer", 404, "not_found"),
        ("GET", "/v2/models/%2E%2E", 404, "unknown_model"),
        ("POST", "/v1/lines/nothing/predict", 404, "unknown_model"),
        ("POST", "/v1/lines/air-time/promote", 400, "invalid_request"),
        ("POST", "/v2/repository/models/nothing/load", 404, "no_folder"),
    ],
)
def test_errors_have_one_shape(shared: Any, method: str, path: str, status: int, code: str) -> None:
    answer = shared.ask(method, path, x_request_id="me")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "me"
    assert set(answer.json) == {"error", "code", "request_id"}
    assert (answer.json["code"], answer.json["request_id"]) == (code, "me")
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/lines/air-time/promote", {"version": 1}),
        ("/v1/lines/air-time/promote", {"version": "1", "more": "x"}),
        ("/v1/lines/air-time/promote", b"[]"),
        ("/v1/lines/air-time/promote", b"{"),
        ("/v2/repository/models/air-time/load", {"parameters": []}),
        ("/v2/repository/models/air-time/load", {"parameters": {"version": "1"}}),
        ("/v2/repository/models/air-time/load", {"parameters": {"version": 1, "digest": "0"}}),
        ("/v2/repository/models/air-time/unload", {"parameters": {"version": "1", "x": "y"}}),
    ],
)
def test_changes_with_wrong_parameters_are_refused(shared: Any, path: str, body: Any) -> None:
    answer = shared.ask("POST", path, body, content_type="application/json")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def test_the_default_cannot_be_unloaded(shared: Any) -> None:
    path = "/v2/repository/models/air-time/unload"
    answer = shared.ask("POST", path, {"parameters": {"version": "1"}})
    assert (answer.status, answer.json["code"]) == (409, "conflict")


def test_infer_refuses_other_content(shared: Any) -> None:
    body = orjson.dumps(GOOD)
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "image/png"):
        answer = shared.ask("POST", INFER, body, content_type=media_type)
        assert (answer.status, answer.json["code"]) == (415, "media_type")
    assert shared.ask("POST", INFER, body, content_encoding="br").status == 415
    assert shared.ask("POST", INFER, body).status == 200
    answer = shared.ask("POST", INFER, b"\0\1", content_type="application/octet-stream")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert answer.headers["modelmint-version"] == "1"


def test_one_connection_serves_answers_and_errors(shared: Any, talk: Any) -> None:
    connection = shared.connect()
    steps = [
        ("POST", INFER, GOOD, 200),
        ("POST", INFER, {}, 400),
        ("HEAD", "/v2", None, 200),
        ("HEAD", "/nothing", None, 404),
        ("PUT", INFER, GOOD, 405),
        ("POST", "/v2/models/nothing/infer", GOOD, 404),
        ("POST", INFER, GOOD, 200),
    ]
    sockets = set()
    for method, path, body, status in steps:
        answer = talk(connection, method, path, body, **shared.bearer)
        sockets.add(id(connection.sock))
        assert answer.status == status
        assert bool(answer.body) == (method != "HEAD")
    assert len(sockets) == 1
    connection.close()


def raw(port: int, request: bytes) -> bytes:
    """Everything the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def head(server: Any) -> bytes:
    lines = f"POST {INFER} HTTP/1.1", "host: x", f"authorization: Bearer {server.key}", ""
    return "\r\n".join(lines).encode()


def test_a_large_body_is_refused_before_it_is_read(shared: Any) -> None:
    answer = raw(shared.port, head(shared) + b"content-length: 100001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"too_large"' in answer


def test_a_large_body_of_unknown_length_is_refused_while_it_is_read(shared: Any) -> None:
    # One byte over and nothing behind it: unread bytes would let the kernel reset the connection.
    chunk = b"%x\r\n" % 100_001 + b" " * 100_001
    answer = raw(shared.port, head(shared) + b"transfer-encoding: chunked\r\n\r\n" + chunk)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive_is_given_up(shared: Any) -> None:
    answer = raw(shared.port, head(shared) + b"content-length: 10\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"timeout"' in answer


def test_a_caller_that_leaves_is_no_error(shared: Any) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), 30) as connection:
        connection.sendall(head(shared) + b"content-length: 10\r\nexpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    assert shared.ask("POST", INFER, GOOD).status == 200
    assert "Traceback" not in shared.log
    assert "ClientDisconnect" not in shared.log


def test_a_body_up_to_the_limit_is_read(shared: Any) -> None:
    body = orjson.dumps(GOOD)
    body += b" " * (100_000 - len(body))
    assert shared.ask("POST", INFER, body).status == 200


def test_many_rows_give_the_same_answer_from_a_thread(shared: Any) -> None:
    numbers = np.arange(24_000, dtype=np.float32).reshape(-1, 2)
    parameters = {"binary_data_size": numbers.nbytes}
    one = {"name": "numbers", "datatype": "FP32", "shape": [12000, 2], "parameters": parameters}
    text = orjson.dumps({"inputs": [one], "parameters": {"binary_data_output": True}})
    length = "inference_header_content_length"
    answer = shared.ask("POST", INFER, text + numbers.tobytes(), **{length: str(len(text))})
    assert answer.status == 200
    found = answer.body[int(answer.headers["inference-header-content-length"]) :]
    expected = numbers @ np.array([1, 2], np.float32)
    np.testing.assert_allclose(np.frombuffer(found, np.float32), expected)


def test_the_index_names_lines_and_defaults(shared: Any) -> None:
    lines = shared.ask("GET", "/").json["lines"]
    assert lines["air-time"]["default"] == "1"
    assert sorted(lines["air-time"]["versions"]) == ["1", "2"]
