"""Captured inputs: from requests to a real server into a real store; and without a store."""

import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy
from prometheus_client import REGISTRY
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deployments.serving import capture as capturing
from deployments.serving.capture import Capture, rates
from deployments.serving.session import Served
from models import samples
from models.tensors import TensorSpec
from tests.deployments.serving.letters import letters

RECORD = {"distance": 100.0, "hour": 3.0}


def keys(client: Any) -> list[str]:
    listed = client.list_objects_v2(Bucket="modelmint", Prefix="captured/")
    return [item["Key"] for item in listed.get("Contents", [])]


def eventually(found: Callable[[], Any]) -> Any:
    """The first answer that is true; fails after a long while."""
    for _ in range(600):
        if answer := found():
            return answer
        time.sleep(0.1)
    raise AssertionError("it never came")


def ready(start: Any, root: Path, version: Any, **settings: str) -> Any:
    server = start(root, environment=settings)
    assert server.load(version, "1").status == 200
    assert server.promote(version.line, "1").status == 200
    return server


def test_rows_reach_the_bucket_as_the_network_took_them(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    client, found = remote
    version = table()
    root = tmp_path / "repository"
    version.place(root, "1")
    server = ready(start, root, version, MODELMINT_CAPTURE="air-time=1", **found)
    for _ in range(3):
        assert server.ask("POST", "/v1/lines/air-time/predict", RECORD).status == 200
    tensor = {"name": "numbers", "shape": [700, 2], "datatype": "FP32", "data": [7.0] * 1400}
    for _ in range(2):
        answer = server.ask("POST", "/v2/models/air-time/infer", {"inputs": [tensor]})
        assert answer.status == 200
    bad = server.ask("POST", "/v1/lines/air-time/predict", {"distance": 1.0})
    assert bad.status == 400

    # 1,403 rows are over what is written at once; the rest is when the server ends.
    eventually(lambda: keys(client))
    assert server.stop() == 0
    sent = keys(client)
    left = list((root / ".server" / "captured").glob("*/*/*.safetensors"))
    assert all(key.startswith(f"captured/air-time/{version.digest}/") for key in sent)
    contents = [client.get_object(Bucket="modelmint", Key=key)["Body"].read() for key in sent]
    contents += [path.read_bytes() for path in left]
    parts = [safetensors.numpy.load(content) for content in contents]
    rows = np.concatenate([part["numbers"] for part in parts])
    assert rows.dtype == np.float32
    assert rows.shape == (1403, 2)
    assert sorted(map(tuple, rows))[-1] == (100.0, 3.0)
    assert (rows == 7).all(axis=1).sum() == 1400
    names = [key.rpartition("/")[2] for key in sent] + [path.name for path in left]
    assert sum(int(name.split("-")[1]) for name in names) == 1403


def test_without_a_store_predictions_go_on_and_files_wait_for_the_next_start(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    client, found = remote
    version = table(5.0)
    root = tmp_path / "repository"
    version.place(root, "1")
    away = found | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    server = ready(start, root, version, MODELMINT_CAPTURE="air-time=1", **away)
    assert server.ask("POST", "/v1/lines/air-time/predict", RECORD).status == 200
    assert server.stop() == 0
    [path] = (root / ".server" / "captured").glob("*/*/*.safetensors")
    start(root, environment={"MODELMINT_CAPTURE": "air-time=1"} | found)
    eventually(lambda: not path.exists())
    assert f"captured/air-time/{version.digest}/{path.name}" in keys(client)


def test_nothing_is_kept_of_who_asks_for_that(
    start: Any, table: Any, sealed: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    rates = {"MODELMINT_CAPTURE": "air-time=1,letters=1"}
    server = start(root, "--grpc-port", str(port), environment=rates | away)
    for version in (table(), sealed("letters", letters())):
        version.place(root, "1")
        assert server.load(version, "1").status == 200
        assert server.promote(version.line, "1").status == 200

    def post(path: str, body: Any, **headers: str) -> None:
        assert server.ask("POST", path, body, **headers).status == 200

    def infer(value: float, **headers: str) -> None:
        tensor = {"name": "numbers", "shape": [1, 2], "datatype": "FP32", "data": [value, 0]}
        post("/v2/models/air-time/infer", {"inputs": [tensor]}, **headers)

    def elsewhere(value: float, **headers: str) -> None:
        infer(value, origin="https://elsewhere", **headers)  # the application's, not `direct`'s

    def over_grpc(value: float, **headers: str) -> None:
        request = service_pb2.ModelInferRequest(model_name="air-time")
        tensor = request.inputs.add(name="numbers", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([value, 0])
        named = server.bearer | {name.replace("_", "-"): text for name, text in headers.items()}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(request, metadata=tuple(named.items()))

    def predict(value: float, **headers: str) -> None:
        post("/v1/lines/air-time/predict", {"distance": value, "hour": 0}, **headers)

    def write(prompt: str, **headers: str) -> None:
        post("/v1/lines/letters/predict", {"prompt": prompt, "characters": 2}, **headers)

    def stream(prompt: str, **headers: str) -> None:
        write(prompt, accept="text/event-stream", **headers)

    def complete(prompt: str, **headers: str) -> None:
        asked = {"model": "letters", "prompt": prompt, "max_tokens": 2}
        post("/v1/completions", asked, **headers)

    paths = (infer, elsewhere, over_grpc, predict)
    for value, path in enumerate(paths, 1):
        path(value)
        path(-value, cache_control="no-store")
        path(-value, cache_control="max-age=0, No-Store")
    texts = (write, stream, complete)
    for path in texts:
        path("ab")
        path("abcd", cache_control="no-store")
    assert server.stop() == 0
    rows: dict[str, list[Any]] = {"air-time": [], "letters": []}
    for file in (root / ".server" / "captured").glob("*/*/*.safetensors"):
        found = safetensors.numpy.load(file.read_bytes())
        rows[file.parts[-3]] += found["numbers" if "numbers" in found else "tokens"].tolist()
    assert sorted(rows["air-time"]) == [[value, 0] for value in range(1, len(paths) + 1)]
    assert len(rows["letters"]) == len(texts)
    assert len(set(map(tuple, rows["letters"]))) == 1


def test_a_setting_that_says_nothing_clear_stops_the_server(start: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="'digits' is not LINE=SHARE"):
        start(tmp_path / "repository", environment={"MODELMINT_CAPTURE": "digits"})


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured stays in the folder, whatever store other tests run beside."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def served(line: str, *names: str) -> Served:
    inputs = [TensorSpec(name=n, datatype="FP32", shape=(-1, 1)) for n in names or ("numbers",)]
    return SimpleNamespace(line=line, digest="d" * 64, inputs=inputs)  # type: ignore[return-value]


def batch(rows: int) -> dict[str, Any]:
    return {"numbers": np.arange(rows, dtype=np.float32).reshape(-1, 1)}


@pytest.mark.usefixtures("no_store")
def test_a_share_of_the_rows_of_the_named_lines_is_kept(tmp_path: Path) -> None:
    with closing(Capture(tmp_path, {"some": 0.2}, seconds=600)) as capture:
        for _ in range(20):
            capture.take(served("some"), batch(400))
            capture.take(served("others"), batch(400))
    files = list(tmp_path.glob("*/*/*.safetensors"))
    assert {path.parts[-3] for path in files} == {"some"}
    count = sum(int(path.name.split("-")[1]) for path in files)
    # Of 8,000 rows; six standard deviations.
    assert abs(count - 1600) < 6 * (8000 * 0.2 * 0.8) ** 0.5


@pytest.mark.usefixtures("no_store")
def test_rows_of_different_length_are_kept_in_one_file(tmp_path: Path) -> None:
    with closing(Capture(tmp_path, {"some": 1.0}, seconds=600)) as capture:
        for length in (3, 5):
            rows = {"x": np.full((1, length), length, np.float32), "frames": np.array([length])}
            capture.take(served("some", *rows), rows)
    [path] = tmp_path.glob("*/*/*.safetensors")
    found = safetensors.numpy.load(path.read_bytes())
    assert found["x"].tolist() == [[3, 3, 3, 0, 0], [5] * 5]
    assert found["frames"].tolist() == [3, 5]


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path: Path) -> None:
    with closing(Capture(tmp_path / "captured", {})) as capture:
        capture.take(served("some"), batch(400))
    assert not (tmp_path / "captured").exists()


@pytest.mark.usefixtures("no_store")
def test_a_spool_that_grows_too_large_loses_its_oldest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "LARGEST_SPOOL", 5000)
    folder = tmp_path / "line" / ("d" * 64)
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"{number}-1-a.safetensors").write_bytes(bytes(1000))
    with closing(Capture(tmp_path, {"line": 1.0}, seconds=600)):
        eventually(lambda: len(list(folder.iterdir())) == 5)
    assert sorted(path.name[0] for path in folder.iterdir()) == list("56789")


def dropped(line: str) -> float:
    return REGISTRY.get_sample_value("modelmint_capture_dropped_rows_total", {"line": line}) or 0.0


def kept(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*/*/*.safetensors"), key=lambda path: path.name)
    return [safetensors.numpy.load(path.read_bytes()) for path in files]


@pytest.mark.usefixtures("no_store")
@pytest.mark.parametrize(("bound", "value"), [("MOST", 1), ("MOST_BYTES", 4000)])
def test_rows_for_which_there_is_no_room_are_dropped_and_counted(
    bound: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, bound, value)
    before = dropped(bound)
    with monkeypatch.context() as meanwhile:  # nothing is written
        meanwhile.setattr(Capture, "_write", lambda _: None)
        capture = Capture(tmp_path, {bound: 1.0}, seconds=600)
    with closing(capture):
        for _ in range(3):
            capture.take(served(bound), batch(500))
        assert dropped(bound) == before + 500
    assert sum(len(file["numbers"]) for file in kept(tmp_path)) == 1000


@pytest.mark.usefixtures("no_store")
def test_many_bytes_are_written_as_soon_as_many_rows_are(tmp_path: Path) -> None:
    with closing(Capture(tmp_path, {"some": 1.0}, seconds=600)) as capture:
        large = {"numbers": np.ones((2, capturing.BYTES // 8), np.float32)}
        capture.take(served("some"), large)
        eventually(lambda: list(tmp_path.glob("*/*/*.safetensors")))


@pytest.mark.usefixtures("no_store")
def test_a_long_row_makes_no_file_of_many_short_ones_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "MOST_BYTES", 40_000)
    before = dropped("texts")
    with closing(Capture(tmp_path, {"texts": 1.0}, seconds=600)) as capture:
        lengths = [*[3] * 50, 10_000, *[3] * 50]
        for length in lengths:
            capture.take(served("texts"), {"numbers": np.array([["x" * length]], object)})
        # Padded to the longest, as in a file.
        uneven = np.array([["x" * length] for length in (5000, *[1] * 9)], object)
        capture.take(served("texts"), {"numbers": uneven})
        assert dropped("texts") == before + 10
    files = kept(tmp_path)
    assert all(file["numbers"].nbytes <= 40_000 for file in files)
    texts = [row.tobytes().rstrip(b"\0") for file in files for row in file["numbers"]]
    assert sorted(map(len, texts)) == sorted(lengths)


@pytest.mark.usefixtures("no_store")
def test_a_text_with_a_zero_character_is_kept_and_costs_no_other_row(tmp_path: Path) -> None:
    before = dropped("zeros")
    texts = [["a\0", "\0"], ["b", "c"], ["\0\0d", ""]]
    with closing(Capture(tmp_path, {"zeros": 1.0}, seconds=600)) as capture:
        for some in (texts[:1], texts[1:]):
            capture.take(served("zeros"), {"numbers": np.array(some, object)})
    [path] = tmp_path.glob("*/*/*.safetensors")
    words = TensorSpec(name="numbers", datatype="BYTES", shape=(-1, 2))
    assert samples.load(path.read_bytes(), [words])["numbers"].tolist() == texts
    assert dropped("zeros") == before


def test_a_store_that_does_not_answer_keeps_nothing_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some" / ("d" * 64)
    folder.mkdir(parents=True)
    (folder / "1-1-a.safetensors").write_bytes(bytes(1000))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        with closing(Capture(tmp_path, {"some": 1.0}, seconds=600)) as capture:
            asked, _ = silent.accept()
            with asked:
                for count in (2, 3):
                    capture.take(served("some"), batch(capturing.ROWS))
                    eventually(lambda count=count: len(list(folder.iterdir())) == count)


@pytest.mark.parametrize("text", ["digits", "digits=2", "digits=x", "=0.5", "Digits=0.5"])
def test_a_share_is_a_number_from_0_to_1_of_a_line(text: str) -> None:
    assert rates("digits=0.05,flights=1,") == {"digits": 0.05, "flights": 1.0}
    assert rates("") == {}
    with pytest.raises(ValueError, match="is not LINE=SHARE"):
        rates(text)
