"""Versions fetched from a real object store (SeaweedFS)."""

from pathlib import Path
from typing import Any

import pytest

from deployments.serving.folder import line_folder, version_folder


def put(client: Any, version: Any) -> str:
    prefix = f"versions/{version.line}/{version.digest}"
    for name, content in (version.files | {"MLmodel": b"ignored"}).items():
        client.put_object(Bucket="modelmint", Key=f"{prefix}/{name}", Body=content)
    return f"s3://modelmint/{prefix}/"


def test_a_version_is_fetched_once_and_kept(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    client, found = remote
    root, version = tmp_path / "repository", table(1.0)
    source = put(client, version)
    server = start(root, environment=found)
    answer = server.load(version, "4", source)
    assert (answer.status, answer.json["digest"]) == (200, version.digest)
    folder = version_folder(root, "air-time", "4")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == version.files
    assert server.promote("air-time", "4").status == 200
    assert server.stop() == 0
    server = start(root, environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert server.ask("GET", "/v2/models/air-time/ready").status == 200


@pytest.mark.parametrize(
    "name",
    ["version.json", "manifest.json", "model.onnx", "signature.json", "sample.safetensors"],
)
def test_an_altered_object_never_reaches_the_folder(
    remote: Any, start: Any, table: Any, tmp_path: Path, name: str
) -> None:
    client, found = remote
    root, one, two = tmp_path / "repository", table(), table(2.0, altered=name)
    one.place(root, "1")
    source = put(client, two)
    content = bytearray(two.files[name])
    content[-9] ^= 1
    key = f"versions/{two.line}/{two.digest}/{name}"
    client.put_object(Bucket="modelmint", Key=key, Body=bytes(content))
    server = start(root, environment=found)
    server.load(one, "1")
    server.promote("air-time", "1")
    answer = server.load(two, "2", source)
    assert (answer.status, answer.json["code"]) == (422, "integrity")
    assert sorted(path.name for path in line_folder(root, "air-time").iterdir()) == [
        "1",
        "config.pbtxt",
    ]
    assert server.ask("GET", "/v2/models/air-time/ready").status == 200

    client.put_object(Bucket="modelmint", Key=key, Body=two.files[name])
    assert server.load(two, "2", source).status == 200


def test_a_damaged_folder_is_fetched_again(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    client, found = remote
    root, version = tmp_path / "repository", table(3.0)
    source = put(client, version)
    model = version.place(root, "1") / "model.onnx"
    model.write_bytes(b"damaged")
    server = start(root, environment=found)
    assert server.load(version, "1").status == 422
    assert server.load(version, "1", source).status == 200
    assert model.read_bytes() == version.files["model.onnx"]
    assert [path.name for path in line_folder(root, "air-time").iterdir()] == ["1"]


def test_an_absent_version_and_an_absent_store_are_told_apart(
    remote: Any, start: Any, table: Any, tmp_path: Path
) -> None:
    _, found = remote
    version = table(4.0)
    source = f"s3://modelmint/versions/air-time/{version.digest}"
    server = start(tmp_path / "here", environment=found)
    answer = server.load(version, "1", source)
    assert (answer.status, answer.json["code"]) == (422, "integrity")
    assert "provenance.json is not at the source" in answer.json["error"]
    gone = found | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    server = start(tmp_path / "gone", environment=gone)
    answer = server.load(version, "1", source)
    assert (answer.status, answer.json["code"]) == (502, "store_unavailable")
    assert "127.0.0.1" not in answer.json["error"]
