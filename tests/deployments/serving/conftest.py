"""Real versions (small ONNX networks with true digests) and real server processes."""

import http.client
import io
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy as np
import onnx
import onnxruntime
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from securesystemslib.signer import CryptoSigner

from deployments.local.store import environment, store
from models import samples
from models.attestation import PROVENANCE, Statement, described, signed
from models.data import Features
from models.digests import Manifest, canonical_json
from models.images import ImageFeatures, ImageSize
from models.objectives import Classification, Objective, Regression
from models.predicates import BUILD_TYPE
from models.signature import (
    MANIFEST_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    VERSION_FILE,
    Signature,
)
from models.tables import FittedCategory, FittedNumber, TableFeatures
from models.trust import KEYS_SETTING, TRUSTED, PublicKey, Trust
from models.version import Recipe, record
from tests.deployments.serving.datatypes import EveryDatatype

ROOT = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "deployments.serving")
LABELS = ("boot", "coat", "dress")
SIGNER = CryptoSigner.generate_ed25519()
KEYS = tempfile.TemporaryDirectory()
"""The folder of trusted keys that holds the signer's."""


def trusted() -> Trust:
    """The trust of a place that counts the signer's signatures."""
    key = PublicKey(
        keyid=SIGNER.public_key.keyid, public=SIGNER.public_key.keyval["public"], owner="tests"
    )
    folder = Path(KEYS.name) / TRUSTED
    folder.mkdir(exist_ok=True)
    (folder / f"{key.keyid}.json").write_text(key.model_dump_json())
    return Trust(Path(KEYS.name))


class Version(NamedTuple):
    """A version folder in memory."""

    line: str
    digest: str
    files: dict[str, bytes]

    def place(self, root: Path, number: str) -> Path:
        """Write it where a server looks for it."""
        folder = root / self.line / number
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


def network(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> bytes:
    constants = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def assemble(
    line: str,
    model: bytes,
    features: Features,
    objective: Objective,
    sample: dict[str, Any],
    **body: Any,
) -> Version:
    signature = Signature(features=features, objective=objective)
    files = {
        MODEL_FILE: model,
        SIGNATURE_FILE: signature.model_dump_json().encode(),
        SAMPLE_FILE: samples.save(sample),
    }
    return seal(line, files, **body)


def made(recipe: Recipe) -> dict[str, Any]:
    """How it came to be, as far as provenance must tell."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "internalParameters": {
                "recipe": recipe.model_dump(mode="json"),
                "located": "0" * 64,
            },
            "resolvedDependencies": [],
        },
        "runDetails": {
            "metadata": {"invocationId": "", "finishedOn": "2026-01-01T00:00:00+00:00"},
            "modelmint_machine": {"processor": "of a test"},
        },
    }


def seal(line: str, files: dict[str, bytes], **body: Any) -> Version:
    """A signed version of whatever files these are."""
    manifest = Manifest.of(files)
    settings = {name: str(value) for name, value in body.items()}
    recipe = Recipe(
        line=line, snapshot="0" * 64, settings=settings, stages={}, artifact=manifest.digest
    )
    files[MANIFEST_FILE] = canonical_json(manifest.model_dump(mode="json"))
    files[VERSION_FILE] = canonical_json(record(recipe))
    subjects = tuple(described(name, content) for name, content in files.items())
    statement = Statement(subject=subjects, predicate_type=PROVENANCE, predicate=made(recipe))
    files[PROVENANCE_FILE] = signed(statement, [SIGNER])
    return Version(line, recipe.digest, files)


def table_version(
    bias: float = 0.0, line: str = "air-time", off: float = 0.0, name: str = "numbers", **body: Any
) -> Version:
    """prediction = distance + 2 hour + bias; `off` is added to the recorded output only."""
    nodes = [
        helper.make_node("MatMul", [name, "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["prediction"]),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        w=np.array([[1.0], [2.0]], np.float32),
        b=np.array([bias], np.float32),
        shape=np.array([-1], np.int64),
    )
    features = TableFeatures(
        numbers=(
            FittedNumber(name="distance", unit="mi", mean=0, deviation=1),
            FittedNumber(name="hour", unit="h", mean=0, deviation=1),
        ),
        categories=(),
    )
    numbers = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    output = numbers @ np.array([1, 2], np.float32) + np.float32(bias + off)
    sample = {"numbers": numbers, "prediction": output.astype(np.float32)}
    objective = Regression(target="air_time", unit="min")
    return assemble(line, model, features, objective, sample, **body)


def image_version(line: str = "clothes") -> Version:
    """Softmax of the brightness of the image's upper, middle and lower part."""
    weights = np.zeros((784, 3), np.float32)
    for part in range(3):
        weights[part * 256 : (part + 1) * 256, part] = 0.0001
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["real"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        w=weights,
    )
    image = np.arange(2 * 784).reshape(2, 1, 28, 28).astype(np.uint8)
    scores = np.exp(image.reshape(2, 784).astype(np.float32) @ weights)
    sample = {"image": image, "probabilities": scores / scores.sum(axis=1, keepdims=True)}
    features = ImageFeatures(size=ImageSize(), mean=100.0, deviation=50.0)
    return assemble(line, model, features, Classification(target="kind", labels=LABELS), sample)


def own_version(nodes: list[Any], numbers: Any) -> Version:
    """A regression of `numbers` [n, 2]; its network ends in `y` [n, 1] and has weights `w`."""
    ends = [helper.make_node("Reshape", ["y", "shape"], ["prediction"])]
    model = network(
        [*nodes, *ends],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        w=np.array([[1.0], [2.0]], np.float32),
        shape=np.array([-1], np.int64),
    )
    output = onnxruntime.InferenceSession(model).run(None, {"numbers": numbers})[0]
    parts = [FittedNumber(name=name, unit="", mean=0, deviation=1) for name in ("a", "b")]
    features = TableFeatures(numbers=tuple(parts), categories=())
    sample = {"numbers": numbers, "prediction": output}
    return assemble("own", model, features, Regression(target="y", unit=""), sample)


def product_version() -> Version:
    """y = a times b."""
    nodes = [
        helper.make_node("Split", ["numbers"], ["a", "b"], axis=1),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    return own_version(nodes, np.array([[1, 2], [3, 4]], np.float32))


def slow_version(line: str = "slow") -> Version:
    """prediction = (distance + hour) / 16, in milliseconds, and much less in a batch."""
    wide = np.full((2048, 2048), 2.0**-11, np.float32)
    nodes = [
        helper.make_node("MatMul", ["numbers", "spread"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{i}", "wide"], [f"h{i + 1}"]) for i in range(3)),
        helper.make_node("MatMul", ["h3", "join"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["prediction"]),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        spread=np.ones((2, 2048), np.float32),
        wide=wide,
        join=np.full((2048, 1), 2.0**-15, np.float32),
        shape=np.array([-1], np.int64),
    )
    parts = [FittedNumber(name=n, unit="", mean=0, deviation=1) for n in ("distance", "hour")]
    features = TableFeatures(numbers=tuple(parts), categories=())
    numbers = np.array([[1, 2], [3, 4], [500, 6]], np.float32)
    sample = {"numbers": numbers, "prediction": numbers.sum(axis=1) / 16}
    return assemble(line, model, features, Regression(target="y", unit=""), sample)


def every_version() -> Version:
    """prediction = the sum of all elements of a row, from a tensor of each datatype."""
    features = EveryDatatype()
    specs = features.inputs
    nodes = [
        *(
            helper.make_node("Cast", [spec.name], [f"{spec.name}.real"], to=TensorProto.FLOAT)
            for spec in specs
        ),
        helper.make_node("Concat", [f"{spec.name}.real" for spec in specs], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "one"], ["prediction"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(
            spec.name,
            helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
            ["n", 2],
        )
        for spec in specs
    ]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])]
    model = network(nodes, inputs, outputs, one=np.array([1], np.int64))
    sample = features.tensors(2) | {"prediction": np.full(2, len(specs), np.float32)}
    return assemble("every", model, features, Regression(target="y", unit=""), sample)


def lookup_version() -> Version:
    """prediction = 10, 20, 30 for the categories 0, 1, 2; other indices the network refuses."""
    nodes = [
        helper.make_node("Gather", ["w", "categories"], ["found"]),
        helper.make_node("Reshape", ["found", "shape"], ["prediction"]),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        w=np.array([10, 20, 30], np.float32),
        shape=np.array([-1], np.int64),
    )
    categories = (FittedCategory(name="kind", vocabulary=("x", "y")),)
    features = TableFeatures(numbers=(), categories=categories)
    indices = np.array([[0], [1], [2]], np.int64)
    sample = {"categories": indices, "prediction": np.array([10, 20, 30], np.float32)}
    return assemble("lookup", model, features, Regression(target="y", unit=""), sample)


def png(value: int = 255) -> bytes:
    """A 28 x 28 image that is bright in its middle part: class `coat`."""
    pixels = np.zeros(784, np.uint8)
    pixels[256:512] = value
    stream = io.BytesIO()
    Image.fromarray(pixels.reshape(28, 28)).save(stream, "PNG")
    return stream.getvalue()


class Answer(NamedTuple):
    """A whole HTTP response; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Server:
    """One server process over a repository folder."""

    def __init__(self, root: Path, *options: str, environment: dict[str, str] | None = None):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.root = root
        self._log = root.parent / f"{root.name}.log"
        self._key = root / ".server" / "first-key"
        places = {KEYS_SETTING: str(trusted().folder)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "--port", str(self.port), "--repository", str(root), *options],
                cwd=ROOT,
                env=os.environ | places | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _wait(self) -> None:
        watched = os.pidfd_open(self.process.pid)
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return
                except OSError:
                    if select.select([watched], [], [], 0.05)[0]:
                        raise RuntimeError(f"the server ended:\n{self.log}") from None
        finally:
            os.close(watched)
        raise RuntimeError(f"the server does not listen:\n{self.log}")

    @property
    def key(self) -> str:
        """The key that may do everything."""
        return self._key.read_text()

    @property
    def bearer(self) -> dict[str, str]:
        """The header that shows it."""
        return {"authorization": f"Bearer {self.key}"}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own, with our key; a dict is sent as JSON."""
        headers = {**self.bearer, **headers}
        connection = self.connect()
        try:
            return exchange(connection, method, path, body, **headers)
        finally:
            connection.close()

    def load(self, version: Version, number: str, source: str | None = None) -> Answer:
        parameters = {"version": number, "digest": version.digest}
        if source is not None:
            parameters["source"] = source
        path = f"/v2/repository/models/{version.line}/load"
        return self.ask("POST", path, {"parameters": parameters})

    def promote(self, line: str, number: str) -> Answer:
        return self.ask("POST", f"/v1/lines/{line}/promote", {"version": number})

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **named: str
) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in named.items()}
    if isinstance(body, dict):
        body = orjson.dumps(body)
        headers.setdefault("content-type", "application/json")
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


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
