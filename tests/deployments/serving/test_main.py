"""The process: swaps under load, restarts, drains, and what it says when it cannot start."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.folder import version_folder

BODY = orjson.dumps(
    {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
)
INFER = "/v2/models/air-time/infer"
NO_STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_swaps_under_load_fail_no_request(
    start: Any, table: Any, talk: Any, tmp_path: Path, workers: str
) -> None:
    root = tmp_path / "repository"
    versions = {str(number): table(10.0 * number) for number in (1, 2, 3)}
    for number, version in versions.items():
        version.place(root, number)
    server = start(root, "--workers", workers, environment=NO_STORE)
    for number in ("1", "2"):
        assert server.load(versions[number], number).status == 200
    server.promote("air-time", "1")

    stop, first = threading.Event(), threading.Barrier(5)
    answers: list[list[tuple[int, str, float]]] = [[] for _ in range(4)]
    problems: list[BaseException] = []

    def ask(found: list[tuple[int, str, float]]) -> None:
        connection = server.connect()
        try:
            while True:
                last = stop.is_set()
                answer = talk(connection, "POST", INFER, BODY, **server.bearer)
                value = answer.json["outputs"][0]["data"][0]
                found.append((answer.status, answer.headers["modelmint-version"], value))
                if len(found) == 1:
                    first.wait(30)
                if last:
                    break
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(found,)) for found in answers]
    for thread in threads:
        thread.start()
    first.wait(30)
    path, parameters = "/v2/repository/models/air-time/unload", {"parameters": {"version": "3"}}
    try:
        for _ in range(5):
            assert server.load(versions["3"], "3").status == 200
            for number in ("2", "3", "1"):
                assert server.promote("air-time", number).status == 200
                # What asks after the answer to a promotion gets the promoted version.
                seen = server.ask("POST", INFER, BODY).headers["modelmint-version"]
                assert seen == number
            assert server.ask("POST", path, parameters).status == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not problems
    for found in answers:
        assert len(found) > 1
        # Each answer was computed by the version it names.
        assert {status for status, _, _ in found} == {200}
        assert {(v, value) for _, v, value in found} <= {("1", 15), ("2", 25), ("3", 35)}
    assert {version for found in answers for _, version, _ in found} == {"1", "2", "3"}


def test_a_restart_restores_what_was_served_without_the_store(
    start: Any, table: Any, image: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = [(table(), "1"), (table(10.0), "2"), (image(), "1")]
    server = start(root)
    for version, number in versions:
        version.place(root, number)
        assert server.load(version, number).status == 200
        assert server.promote(version.line, number).status == 200
    before = server.ask("GET", "/").json
    assert server.stop() == 0

    server = start(root, environment=NO_STORE)
    assert server.ask("GET", "/").json == before
    answer = server.ask("POST", INFER, BODY)
    assert answer.json["outputs"][0]["data"] == [15.0]
    assert answer.headers["modelmint-digest"] == versions[1][0].digest
    assert server.stop() == 0

    model = version_folder(root, "air-time", "2") / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    server = start(root, environment=NO_STORE)
    assert "air-time version 2 is not served" in server.log
    ready = server.ask("GET", "/v2/models/air-time/ready")
    assert (ready.status, ready.json["ready"], list(ready.json["failed"])) == (503, False, ["2"])
    assert str(root) not in ready.body.decode()
    assert {"error", "code", "request_id"} < set(ready.json)
    assert server.ask("POST", INFER, BODY).status == 503
    named = server.ask("GET", "/v2/models/air-time/versions/2/ready", x_request_id="me").json
    assert (named["code"], named["request_id"]) == ("version_failed", "me")
    unknown = server.ask("GET", "/v2/models/air-time/versions/99/ready")
    assert (unknown.status, unknown.json["code"]) == (404, "version_not_loaded")
    assert server.ask("POST", "/v2/models/air-time/versions/1/infer", BODY).status == 200
    assert server.ask("GET", "/v2/models/clothes/ready").status == 200
    assert server.ask("GET", "/v2/health/ready").json == {"ready": True, "failed_versions": 1}
    only_ready = server.ask("POST", "/v2/repository/index", {"ready": True}).json
    assert ("air-time", "2") not in {(m["name"], m["version"]) for m in only_ready}


@pytest.mark.parametrize(
    "name", ["version.json", "manifest.json", "model.onnx", "signature.json", "provenance.json"]
)
def test_a_tampered_version_is_refused_and_the_default_keeps_answering(
    start: Any, table: Any, tmp_path: Path, name: str
) -> None:
    root, one, two = tmp_path / "repository", table(), table(10.0)
    one.place(root, "1")
    path = two.place(root, "2") / name
    content = path.read_bytes()
    path.write_bytes(content.replace(content[-9:-8], b"?"))
    server = start(root)
    server.load(one, "1")
    server.promote("air-time", "1")
    answer = server.load(two, "2")
    assert (answer.status, answer.json["code"]) == (422, "integrity")
    assert str(tmp_path) not in answer.json["error"]
    assert server.promote("air-time", "2").status == 404
    assert server.ask("POST", INFER, BODY).headers["modelmint-digest"] == one.digest


def test_a_request_in_flight_is_answered_before_the_end(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root, one = tmp_path / "repository", table()
    one.place(root, "1")
    server = start(root)
    server.load(one, "1")
    server.promote("air-time", "1")
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n"
        head += "expect: 100-continue\r\n"
        connection.sendall(f"{head}content-length: {len(BODY)}\r\n\r\n".encode())
        # Sent once the route waits for the body: from here on the request is in flight.
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        os.kill(server.process.pid, signal.SIGTERM)
        while not refuses(server.port):
            pass
        connection.sendall(BODY)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(20) == 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 30).close()
    except ConnectionError:
        return True
    return False


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.serving", *options]
    root = Path(__file__).resolve().parents[3]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_damaged_state_is_one_line_and_no_start(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    ended = run("--repository", str(tmp_path), "--port", "0")
    assert ended.returncode == 1
    assert "state.json cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_server_on_one_repository_does_not_start(start: Any, tmp_path: Path) -> None:
    start(tmp_path / "repository")
    ended = run("--repository", str(tmp_path / "repository"), "--port", "0")
    assert ended.returncode == 1
    assert "another server may hold it" in ended.stderr


def test_serving_needs_no_torch(tmp_path: Path, table: Any, image: Any, here: Any) -> None:
    for version in (table(), image()):
        version.place(tmp_path, "1")
    code = (
        "import sys; from pathlib import Path\n"
        "from deployments.serving import app\n"
        "from deployments.serving.repository import Repository\n"
        "from models.trust import Trust\n"
        f"repository = Repository(Path({str(tmp_path)!r}), Trust(Path({str(here.folder)!r})))\n"
        f"repository.load('air-time', '1', {table().digest!r})\n"
        f"repository.load('clothes', '1', {image().digest!r})\n"
        "unwanted = ('torch', 'tasks', 'flows', 'mlflow', 'boto3')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
