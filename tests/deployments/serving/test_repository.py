"""Versions on disk: proven before use, whole or not at all, and remembered."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.numpy
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deployments.serving.folder import TRITON_FILE, hold, line_folder, version_folder
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.state import STATE_FILE
from models.signature import MANIFEST_FILE, SAMPLE_FILE, VERSION_FILE

FILES = ["version.json", "manifest.json", "model.onnx", "signature.json", "sample.safetensors"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def opened(root: Path, here: Any) -> Iterator[Callable[[], Repository]]:
    """Opens the repository as a server does, after letting go of it where it was open."""
    held: list[Repository] = []

    def begin() -> Repository:
        for before in held:
            before.close()
        hold(root).close()  # as the process does that starts the workers
        held.append(Repository(root, here))
        held[-1].restore()
        return held[-1]

    yield begin
    for repository in held:
        repository.close()


def refused(status: int, code: str, act: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        act(*args)
    assert (caught.value.status, caught.value.code) == (status, code)
    return caught.value.message


def test_load_promote_unload_and_restore(opened: Any, table: Any, root: Path) -> None:
    repository, one, two = opened(), table(), table(5.0)
    one.place(root, "1")
    two.place(root, "2")
    assert repository.load("air-time", "1", one.digest).digest == one.digest
    refused(404, "no_default", repository.default, "air-time")
    repository.set_default("air-time", "1")
    repository.load("air-time", "2", two.digest)
    assert repository.default("air-time").number == "1"
    refused(409, "conflict", repository.unload, "air-time", "1")
    repository.set_default("air-time", "2")

    again = opened()
    assert again.default("air-time").digest == two.digest
    assert again.get("air-time", "1").digest == one.digest
    again.unload("air-time", "1")
    refused(404, "version_not_loaded", again.get, "air-time", "1")
    refused(404, "version_not_loaded", again.unload, "air-time", "1")
    assert version_folder(root, "air-time", "1").exists()

    state = orjson.loads((root / STATE_FILE).read_bytes())
    line = state["lines"]["air-time"]
    assert (line["default"], line["versions"], line["previous"]) == ("2", {"2": two.digest}, [])


def test_a_line_without_versions_is_forgotten(opened: Any, table: Any, root: Path) -> None:
    repository, one = opened(), table()
    one.place(root, "1")
    repository.load("air-time", "1", one.digest)
    repository.unload("air-time", "1")
    refused(404, "unknown_model", repository.line, "air-time")
    assert orjson.loads((root / STATE_FILE).read_bytes())["lines"] == {}


def test_loading_twice_changes_nothing_and_a_number_stays_one_version(
    opened: Any, table: Any, root: Path
) -> None:
    repository, one = opened(), table()
    one.place(root, "1")
    first = repository.load("air-time", "1", one.digest)
    assert repository.load("air-time", "1", one.digest) is first
    refused(409, "conflict", repository.load, "air-time", "1", table(1.0).digest)


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused(opened: Any, table: Any, root: Path, name: str) -> None:
    repository, one, two = opened(), table(), table(5.0)
    one.place(root, "1")
    repository.load("air-time", "1", one.digest)
    repository.set_default("air-time", "1")
    before = (root / STATE_FILE).read_bytes()
    path = two.place(root, "2") / name
    content = bytearray(path.read_bytes())
    # Within a digest's text, so that JSON stays JSON.
    at = content.index(b'"', len(content) // 2) - 1 if path.suffix == ".json" else len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)
    refused(422, "integrity", repository.load, "air-time", "2", two.digest)
    assert list(repository.line("air-time").versions) == ["1"]
    assert (root / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(opened: Any, table: Any, root: Path, name: str) -> None:
    one = table()
    (one.place(root, "1") / name).unlink()
    message = refused(422, "integrity", opened().load, "air-time", "1", one.digest)
    assert f"{name} cannot be read" in message
    assert str(root) not in message


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"digest": 1, "body": {}}', b"\xff"])
@pytest.mark.parametrize("name", [VERSION_FILE, MANIFEST_FILE])
def test_records_of_another_form_are_refused(
    opened: Any, table: Any, root: Path, name: str, content: bytes
) -> None:
    one = table()
    (one.place(root, "1") / name).write_bytes(content)
    refused(422, "integrity", opened().load, "air-time", "1", one.digest)


def test_a_true_version_under_another_digest_or_line_is_refused(
    opened: Any, table: Any, root: Path
) -> None:
    repository, one = opened(), table()
    one.place(root, "1")
    refused(422, "integrity", repository.load, "air-time", "1", table(1.0).digest)
    one._replace(line="other").place(root, "1")
    assert "belongs to line" in refused(422, "integrity", repository.load, "other", "1", one.digest)


def test_a_stated_digest_that_is_not_the_bodys_is_refused(
    opened: Any, table: Any, root: Path
) -> None:
    one = table()
    record = orjson.loads(one.files[VERSION_FILE]) | {"digest": "0" * 64}
    (one.place(root, "1") / VERSION_FILE).write_bytes(orjson.dumps(record))
    refused(422, "integrity", opened().load, "air-time", "1", one.digest)


def test_a_body_altered_beside_its_artifact_is_refused(opened: Any, table: Any, root: Path) -> None:
    one = table(code="1" * 40)
    altered = one.files[VERSION_FILE].replace(b"1" * 40, b"2" * 40)
    assert altered != one.files[VERSION_FILE]
    (one.place(root, "1") / VERSION_FILE).write_bytes(altered)
    refused(422, "integrity", opened().load, "air-time", "1", one.digest)


def test_a_manifest_without_the_sample_is_refused(
    opened: Any, table: Any, sealed: Any, root: Path
) -> None:
    one = table()
    proven = ("model.onnx", "signature.json")
    bad = sealed("air-time", {name: one.files[name] for name in proven})
    bad.place(root, "1")
    message = refused(422, "integrity", opened().load, "air-time", "1", bad.digest)
    assert f"names no {SAMPLE_FILE}" in message


@pytest.mark.parametrize(
    ("line", "number", "digest"),
    [
        ("../up", "1", "0" * 64),
        ("a/b", "1", "0" * 64),
        ("air-time\n", "1", "0" * 64),
        ("A", "1", "0" * 64),
        (".hidden", "1", "0" * 64),
        ("air-time", "0", "0" * 64),
        ("air-time", "01", "0" * 64),
        ("air-time", "../1", "0" * 64),
        ("air-time", "1\n", "0" * 64),
        ("air-time", "٣", "0" * 64),
        ("air-time", "1", "0" * 63),
        ("air-time", "1", "A" * 64),
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(
    opened: Any, line: str, number: str, digest: str
) -> None:
    refused(400, "bad_name", opened().load, line, number, digest)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "/etc",
        "file:///etc",
        "http://host/versions/x",
        "s3://other/versions/x",
        "s3://modelmint/raw/x",
        "s3://modelmint/versions",
        "s3://modelmint/versions/",
        "s3://modelmint/versions/../raw",
        "s3://modelmint/versions/x/..",
        "s3://modelmint/versions//x",
        "s3://modelmint/versions/x\n",
        "s3://modelmint/versions/x?y",
    ],
)
def test_other_sources_are_refused(opened: Any, source: str) -> None:
    refused(400, "bad_source", opened().load, "air-time", "1", "0" * 64, source)


def test_a_version_that_is_nowhere_is_not_found(opened: Any) -> None:
    refused(404, "no_folder", opened().load, "air-time", "1", "0" * 64)


def test_an_output_far_from_the_recorded_one_is_refused(
    opened: Any, table: Any, root: Path
) -> None:
    repository = opened()
    near, far = table(off=3.0), table(off=8.0)  # the spread of the recorded output is 17 and more
    near.place(root, "1")
    far.place(root, "2")
    repository.load("air-time", "1", near.digest)
    message = refused(422, "unfit_version", repository.load, "air-time", "2", far.digest)
    assert "from the recorded one" in message


def test_an_output_that_is_not_a_number_is_refused(opened: Any, table: Any, root: Path) -> None:
    bad = table(float("nan"))
    bad.place(root, "1")
    message = refused(422, "unfit_version", opened().load, "air-time", "1", bad.digest)
    assert "not finite" in message


def test_a_network_with_other_inputs_is_refused(opened: Any, table: Any, root: Path) -> None:
    bad = table(name="features")
    bad.place(root, "1")
    message = refused(422, "unfit_version", opened().load, "air-time", "1", bad.digest)
    assert "inputs are features, the signature says numbers" in message


@pytest.mark.parametrize(
    "case",
    [
        ("model.onnx", b"no network", "not a network"),
        ("signature.json", b'{"features": {"type": "os:path"}}', "cannot be read"),
        ("sample.safetensors", b"\0" * 8, "cannot be read"),
        (
            "sample.safetensors",
            safetensors.numpy.save({"numbers": np.zeros((1, 2), np.float32)}),
            "no tensor 'prediction'",
        ),
        (
            "sample.safetensors",
            safetensors.numpy.save(
                {"numbers": np.zeros((1, 3), np.float32), "prediction": np.zeros(1, np.float32)}
            ),
            "has shape [1, 3]",
        ),
    ],
)
def test_true_files_that_do_not_fit_are_refused(
    opened: Any, table: Any, sealed: Any, root: Path, case: tuple[str, bytes, str]
) -> None:
    (name, content, expected), one = case, table()
    proven = ("model.onnx", "signature.json", "sample.safetensors")
    files = {n: one.files[n] for n in proven} | {name: content}
    bad = sealed("air-time", files)
    bad.place(root, "1")
    message = refused(422, "unfit_version", opened().load, "air-time", "1", bad.digest)
    assert expected in message


def test_other_files_of_the_folder_are_ignored(opened: Any, table: Any, root: Path) -> None:
    one = table()
    (one.place(root, "1") / "MLmodel").write_text("anything")
    assert opened().load("air-time", "1", one.digest).number == "1"


def test_what_fails_at_start_is_named_and_stops_nothing_else(
    opened: Any, table: Any, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository, one, two = opened(), table(), table(5.0)
    one.place(root, "1")
    folder = two.place(root, "2")
    repository.load("air-time", "1", one.digest)
    repository.load("air-time", "2", two.digest)
    repository.set_default("air-time", "2")
    leftover = line_folder(root, "air-time") / ".incoming-3"
    leftover.mkdir()
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(model[:-1])

    again = opened()
    assert "air-time version 2 is not served" in caplog.text
    assert not leftover.exists()
    assert not again.line("air-time").ready
    assert again.get("air-time", "1").digest == one.digest
    refused(503, "version_failed", again.default, "air-time")
    refused(503, "version_failed", again.set_default, "air-time", "2")
    # Still wanted: another change must not forget it, and once mended it loads again.
    three = table(7.0)
    three.place(root, "3")
    again.load("air-time", "3", three.digest)
    assert "2" in orjson.loads((root / STATE_FILE).read_bytes())["lines"]["air-time"]["versions"]
    (folder / "model.onnx").write_bytes(model)
    again.load("air-time", "2", two.digest)
    assert again.default("air-time").digest == two.digest
    assert not again.line("air-time").failed


@pytest.mark.parametrize("content", [b"", b"{", b'{"lines": {"../x": {}}}', b"[]"])
def test_an_unreadable_state_is_not_taken_for_an_empty_one(
    opened: Any, root: Path, content: bytes
) -> None:
    root.mkdir()
    (root / STATE_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="state.json is damaged at "):
        opened()


def test_one_server_at_a_time(root: Path) -> None:
    with hold(root), pytest.raises(OSError, match="temporarily unavailable"):
        hold(root)


def test_triton_reads_the_folder(opened: Any, table: Any, image: Any, root: Path) -> None:
    repository = opened()
    for version in (table(), image()):
        for number in ("1", "3"):
            version.place(root, number)
            repository.load(version.line, number, version.digest)
        repository.set_default(version.line, "1")
    text = (line_folder(root, "clothes") / TRITON_FILE).read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.platform) == ("clothes", "onnxruntime_onnx")
    assert list(config.version_policy.specific.versions) == [1]
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("image", model_config_pb2.TYPE_UINT8, [-1, 1, 28, 28])
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("probabilities", model_config_pb2.TYPE_FP32, [-1, 3])
    ]
    repository.set_default("clothes", "3")
    assert "versions: [ 3 ]" in (line_folder(root, "clothes") / TRITON_FILE).read_text()
    assert (version_folder(root, "clothes", "3") / "model.onnx").exists()


def test_a_served_version_never_changes(opened: Any, table: Any, root: Path) -> None:
    one = table()
    one.place(root, "1")
    served = opened().load("air-time", "1", one.digest)
    with pytest.raises(dataclasses.FrozenInstanceError):
        served.number = "2"
