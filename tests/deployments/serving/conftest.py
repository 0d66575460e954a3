"""Fixtures: versions that can be served, and running servers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from deployments.local.store import environment, store
from models.trust import Trust
from tests.deployments.serving.bad import key
from tests.deployments.serving.sequences import opinion_version, tones_version
from tests.deployments.serving.server import Answer, Server, exchange
from tests.deployments.serving.versions import (
    Version,
    every_version,
    image_version,
    lookup_version,
    own_version,
    png,
    product_version,
    seal,
    slow_version,
    table_version,
    trusted,
)


@pytest.fixture(scope="session")
def table() -> Callable[..., Version]:
    return table_version


@pytest.fixture(scope="session")
def image() -> Callable[..., Version]:
    return image_version


@pytest.fixture(scope="session")
def own() -> Callable[..., Version]:
    return own_version


@pytest.fixture(scope="session")
def slow() -> Callable[..., Version]:
    return slow_version


@pytest.fixture(scope="session")
def every() -> Callable[..., Version]:
    return every_version


@pytest.fixture(scope="session")
def serve() -> Callable[..., Server]:
    """Starts a server that its caller stops."""
    return Server


@pytest.fixture(scope="session")
def product() -> Callable[..., Version]:
    return product_version


@pytest.fixture(scope="session")
def lookup() -> Callable[..., Version]:
    return lookup_version


@pytest.fixture(scope="session")
def sealed() -> Callable[..., Version]:
    return seal


@pytest.fixture(scope="session")
def here() -> Trust:
    """The trust in which those versions verify."""
    return trusted()


@pytest.fixture(scope="session")
def picture() -> bytes:
    return png()


@pytest.fixture(scope="session")
def talk() -> Callable[..., Answer]:
    return exchange


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts server processes; every one is ended with the test."""
    servers: list[Server] = []

    def begin(root: Path, *options: str, **more: Any) -> Server:
        servers.append(Server(root, *options, **more))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def begun() -> Callable[..., AbstractContextManager[Server]]:
    """Starts a server process that ends with the block."""

    @contextmanager
    def begin(root: Path, *options: str, **more: Any) -> Iterator[Server]:
        server = Server(root, *options, **more)
        try:
            yield server
        finally:
            server.stop()

    return begin


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `slow` 1, whose requests are batched and cached; `uncached` 1 is not cached."""
    root = tmp_path_factory.mktemp("batched") / "repository"
    server = Server(root, "--no-cache", "uncached")
    try:
        for version in (slow_version(), slow_version("uncached")):
            version.place(root, "1")
            assert server.load(version, "1").status == 200
            assert server.promote(version.line, "1").status == 200
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `air-time` 1 (default) and 2, and `clothes` 1 (default), for reading only."""
    root = tmp_path_factory.mktemp("shared") / "repository"
    versions = [(table_version(), "1"), (table_version(10.0), "2"), (image_version(), "1")]
    for version, number in versions:
        version.place(root, number)
    server = Server(root, "--max-body", "100000", "--body-seconds", "2")
    try:
        for version, number in versions:
            assert server.load(version, number).status == 200
        for line in ("air-time", "clothes"):
            assert server.promote(line, "1").status == 200
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default limits of a line of each kind, to which bad requests are sent."""
    root = tmp_path_factory.mktemp("bad") / "repository"
    server = Server(root)
    kinds = (table_version(), image_version(), lookup_version(), opinion_version(), tones_version())
    try:
        for version in kinds:
            version.place(root, "1")
            assert server.load(version, "1").status == 200
            assert server.promote(version.line, "1").status == 200
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def quiet(exposed: Server) -> dict[str, str]:
    """The header of a tenant of it who does nothing wrong."""
    return key(exposed, "quiet", "predict:air-time")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that also speaks gRPC: `air-time` 1 (default) and 2, `every` 1 and `slow` 1."""
    from tests.deployments.serving.spoken import speaking  # Triton's client takes a while

    root = tmp_path_factory.mktemp("grpc") / "repository"
    made = (table_version(), "1"), (table_version(10.0), "2"), (every_version(), "1")
    versions = [*made, (slow_version(), "1")]
    with speaking(root, versions, "--max-body", "100000", "--body-seconds", "2") as found:
        yield found


@pytest.fixture
def remote(remote_store: tuple[Any, dict[str, str]]) -> Iterator[tuple[Any, dict[str, str]]]:
    """A client of a store with an empty bucket `modelmint`, and the server's environment."""
    client, _ = remote_store
    yield remote_store
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="modelmint"):
        for item in page.get("Contents", []):
            client.delete_object(Bucket="modelmint", Key=item["Key"])


@pytest.fixture(scope="package")
def remote_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    home = tmp_path_factory.mktemp("store")
    with store(home).use() as running:
        found = environment(home, running)
        client = boto3.client(
            "s3",
            endpoint_url=found["AWS_ENDPOINT_URL"],
            aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
            region_name=found["AWS_REGION"],
        )
        client.create_bucket(Bucket="modelmint")
        yield client, found
        client.close()
