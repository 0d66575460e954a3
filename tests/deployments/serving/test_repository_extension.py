"""The repository extension as Triton's clients speak it, HTTP and gRPC: they name no version."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from deployments.serving.folder import version_folder
from tests.deployments.serving.test_control import NO_STORE, placed, serving

ASKED = 12
"""Connections, so that every worker is asked."""


class Spoken:
    """A server, and one of Triton's clients of it."""

    def __init__(self, server: Any, client: Any, kind: str) -> None:
        self.server, self.client, self.kind = server, client, kind

    def load(self, line: str = "air-time", **more: Any) -> None:
        self.client.load_model(line, headers=self.server.bearer, **more)

    def unload(self, line: str = "air-time") -> None:
        self.client.unload_model(line, headers=self.server.bearer)

    def index(self, **headers: str) -> dict[str, str]:
        """Line/version -> state."""
        found = self.client.get_model_repository_index(headers=headers or self.server.bearer)
        if self.kind == "grpc":
            return {f"{one.name}/{one.version}": one.state for one in found.models}
        return {f"{one['name']}/{one['version']}": one["state"] for one in found}

    def everywhere(self, number: str) -> set[int]:
        path = f"/v2/models/air-time/versions/{number}/ready"
        return {self.server.ask("GET", path).status for _ in range(ASKED)}

    def ready(self, number: str) -> bool:
        found = self.client.is_model_ready("air-time", number, headers=self.server.bearer)
        return bool(found)

    def logged(self) -> list[tuple[str, Any]]:
        entries = self.server.ask("GET", "/v1/audit").json["entries"]
        return [(one["action"], one["detail"]) for one in entries if "load" in one["action"]]


@pytest.fixture(params=["http", "grpc"])
def spoken(
    request: pytest.FixtureRequest, start: Callable[..., Any], tmp_path: Path
) -> Iterator[Callable[..., Spoken]]:
    clients = []

    def begin(*options: str) -> Spoken:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        grpc_port = ("--grpc-port", str(port))
        server = start(tmp_path / "repository", *grpc_port, *options, environment=NO_STORE)
        kind = tritonclient.grpc if request.param == "grpc" else tritonclient.http
        place = port if request.param == "grpc" else server.port
        clients.append(kind.InferenceServerClient(f"127.0.0.1:{place}"))
        return Spoken(server, clients[-1], request.param)

    yield begin
    for client in clients:
        client.close()


def damage(folder: Path) -> bytes:
    """Cut the network short; what it was."""
    path = folder / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    return whole


def test_a_load_without_a_version_takes_the_newest_that_verifies_in_all_workers(
    spoken: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2", "10")
    damage(version_folder(root, "air-time", "10"))
    found = spoken("--workers", "2")
    found.load()
    assert found.index() == {"air-time/2": "READY"}
    assert found.everywhere("2") == {200}
    assert [found.ready(number) for number in ("2", "10", "99", "")] == [True, False, False, False]
    told = {"version": "2", "digest": versions["2"].digest}
    assert found.logged() == [("load", told)]
    assert found.server.load(versions["1"], "1").status == 200
    assert found.server.promote("air-time", "1").status == 200
    found.unload()
    assert found.index() == {"air-time/1": "READY"}
    assert found.everywhere("2") == {404}
    assert serving(found.server, ASKED) == {"1"}
    assert found.logged()[-1] == ("unload", {})
    with pytest.raises(InferenceServerException, match="in production"):
        found.unload()
    found.load()
    assert set(found.index()) == {"air-time/1", "air-time/2"}
    # A load is no promotion; what was in production stays as the way back.
    assert serving(found.server, ASKED) == {"1"}
    assert found.server.promote("air-time", "2").status == 200
    with pytest.raises(InferenceServerException, match="were before"):
        found.unload()
    found.load()
    assert set(found.index()) == {"air-time/1", "air-time/2"}


def test_a_line_that_serves_nobody_is_unloaded_whole(
    spoken: Any, table: Any, tmp_path: Path
) -> None:
    versions = placed(tmp_path / "repository", table, "1", "2")
    found = spoken()
    for number, version in versions.items():
        assert found.server.load(version, number).status == 200
    found.unload()
    assert found.index() == {}
    with pytest.raises(InferenceServerException, match="no model 'air-time' is loaded"):
        found.unload()


def test_the_version_in_production_is_loaded_before_a_newer_one(
    spoken: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2")
    found = spoken()
    assert found.server.load(versions["1"], "1").status == 200
    assert found.server.promote("air-time", "1").status == 200
    assert found.server.stop() == 0
    whole = damage(version_folder(root, "air-time", "1"))
    found = spoken()
    assert found.index() == {"air-time/1": "UNAVAILABLE"}
    with pytest.raises(InferenceServerException, match="air-time version 1: "):
        found.load()
    (version_folder(root, "air-time", "1") / "model.onnx").write_bytes(whole)
    found.load()
    assert found.index() == {"air-time/1": "READY"}
    assert serving(found.server) == {"1"}


def test_what_is_being_tried_stays(spoken: Any, table: Any, tmp_path: Path) -> None:
    versions = placed(tmp_path / "repository", table, "1", "2", "3")
    found = spoken()
    for number, version in versions.items():
        assert found.server.load(version, number).status == 200
    assert found.server.promote("air-time", "1").status == 200
    assert found.server.ask("POST", "/v1/lines/air-time/shadow", {"version": "2"}).status == 200
    found.unload()
    assert set(found.index()) == {"air-time/1", "air-time/2"}


def test_what_cannot_be_loaded_is_refused(spoken: Any, table: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    placed(root, table, "1")
    damage(version_folder(root, "air-time", "1"))
    found = spoken()
    for line, words in (
        ("air-time", "no version of air-time here verifies; the newest, version 1: "),
        ("nobody", "no version of nobody is here"),
        ("..", "name must have the form"),
    ):
        with pytest.raises(InferenceServerException, match=words):
            found.load(line)
    with pytest.raises(InferenceServerException, match="missing version, digest"):
        found.load(config="{}")
    assert found.index() == {}
    assert found.logged() == []


def test_only_those_who_may_manage_a_line_change_it(
    spoken: Any, table: Any, tmp_path: Path
) -> None:
    [version] = placed(tmp_path / "repository", table, "1").values()
    found = spoken()
    assert found.server.load(version, "1").status == 200
    asked = {"tenant": "a", "scopes": ["predict:*", "read:other", "manage:other"]}
    made = found.server.ask("POST", "/v1/keys", asked).json
    bearer = {"authorization": f"Bearer {made['key']}"}
    assert found.index(**bearer) == {}
    for change in (found.client.load_model, found.client.unload_model):
        with pytest.raises(InferenceServerException, match="lacks the scope manage:air-time"):
            change("air-time", headers=bearer)
        with pytest.raises(InferenceServerException, match="key"):
            change("air-time")
    assert found.index() == {"air-time/1": "READY"}


def test_over_grpc_a_version_may_be_named(start: Any, table: Any, tmp_path: Path) -> None:
    versions = placed(tmp_path / "repository", table, "1", "2")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(tmp_path / "repository", "--grpc-port", str(port), environment=NO_STORE)
    metadata = tuple(server.bearer.items())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def code(method: str, **parameters: Any) -> Any:
            request = getattr(service_pb2, f"{method}Request")(model_name="air-time")
            for name, value in parameters.items():
                kind = "string_param" if isinstance(value, str) else "int64_param"
                setattr(request.parameters[name], kind, value)
            return getattr(stub, method).future(request, metadata=metadata).code()

        load, unload = "RepositoryModelLoad", "RepositoryModelUnload"
        digest = versions["1"].digest
        assert code(load, version="1", digest=digest) == grpc.StatusCode.OK
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        assert code(load, version=1, digest=digest) == code(load, version="1") == wrong
        long = "9" * 70_000
        assert code(load, version=long, digest=digest) == code(unload, version=long) == wrong
        other = versions["2"].digest
        assert code(load, version="1", digest=other) == grpc.StatusCode.FAILED_PRECONDITION
        assert server.promote("air-time", "1").status == 200
        assert code(unload, version="1") == grpc.StatusCode.FAILED_PRECONDITION
        assert code(unload, version="2") == grpc.StatusCode.NOT_FOUND
        named = service_pb2.RepositoryIndexRequest(repository_name="other")
        with pytest.raises(grpc.RpcError, match="there is one repository"):
            stub.RepositoryIndex(named, metadata=metadata)
