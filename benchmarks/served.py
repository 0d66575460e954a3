"""What the serving benchmarks serve: two networks as signed versions, and a model server of ours.

`cnn`   220,000 parameters, an image of 28 x 28 a row, tens of microseconds: HTTP is what costs
`wide`  37 million parameters, 784 numbers a row, milliseconds at batch 1: batching is what counts
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np
import onnx
import onnxruntime
import orjson
import safetensors.numpy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from securesystemslib.signer import CryptoSigner

from benchmarks.measuring import ROOT, python
from deployments.serving.folder import version_folder
from models.attestation import PROVENANCE, Statement, described, signed
from models.data import Features
from models.digests import Manifest, canonical_json
from models.images import ImageFeatures, ImageSize
from models.objectives import Classification
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
from models.tables import FittedNumber, TableFeatures
from models.trust import KEYS_SETTING, TRUSTED, PublicKey
from models.version import Recipe, record

CLASSES = 10
LABELS = tuple(map(str, range(CLASSES)))
MODELS = ("cnn", "wide")


class Model(NamedTuple):
    """A network, the name of its input, and rows to ask it."""

    name: str
    onnx: bytes
    input: str
    datatype: str
    rows: NDArray[Any]
    features: Features

    def session(self) -> onnxruntime.InferenceSession:
        """The network as the server runs it: one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self.onnx, options, providers=["CPUExecutionProvider"])

    def files(self) -> dict[str, bytes]:
        """What a version of it holds."""
        sample = {self.input: self.rows[:4]}
        sample["probabilities"] = self.session().run(None, sample)[0]
        objective = Classification(target="label", labels=LABELS)
        signature = Signature(features=self.features, objective=objective)
        return {
            MODEL_FILE: self.onnx,
            SIGNATURE_FILE: signature.model_dump_json().encode(),
            SAMPLE_FILE: safetensors.numpy.save(sample),
        }

    def binary(self) -> tuple[bytes, int]:
        """An infer request of one row with raw tensors both ways, and its JSON part's length."""
        row = self.rows[:1]
        size = {"binary_data_size": row.nbytes}
        one = {"name": self.input, "datatype": self.datatype, "shape": row.shape}
        asked = {"inputs": [one | {"parameters": size}], "parameters": {"binary_data_output": True}}
        text = orjson.dumps(asked)
        return text + row.tobytes(), len(text)

    def json(self) -> bytes:
        """The same in JSON."""
        row = self.rows[:1]
        one = {"name": self.input, "datatype": self.datatype, "shape": row.shape}
        return orjson.dumps({"inputs": [one | {"data": row.reshape(-1).tolist()}]})


def model(name: str) -> Model:
    """The benchmark's network of that name; its weights are the same every time."""
    rng = np.random.default_rng(7)

    def weights(*shape: int) -> NDArray[np.float32]:
        found = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return np.asarray(found, np.float32)

    if name == "cnn":
        constants = {
            "w1": weights(32, 1, 3, 3),
            "w2": weights(64, 32, 3, 3),
            "w3": weights(64, 3136),
        }
        pads: dict[str, Any] = {"pads": [1] * 4}
        pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes = [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["real", "w1"], ["c1"], **pads),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("MaxPool", ["r1"], ["p1"], **pool),
            helper.make_node("Conv", ["p1", "w2"], ["c2"], **pads),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("MaxPool", ["r2"], ["p2"], **pool),
            helper.make_node("Flatten", ["p2"], ["hidden"]),
        ]
        rows = rng.integers(0, 256, (32, 1, 28, 28), np.uint8)
        features: Features = ImageFeatures(size=ImageSize(), mean=128, deviation=64)
    else:
        constants = {"w1": weights(4096, 784), "w2": weights(8192, 4096), "w3": weights(64, 8192)}
        nodes = [
            helper.make_node("Gemm", ["numbers", "w1"], ["h1"], transB=1),
            helper.make_node("Relu", ["h1"], ["a1"]),
            helper.make_node("Gemm", ["a1", "w2"], ["h2"], transB=1),
            helper.make_node("Relu", ["h2"], ["hidden"]),
        ]
        rows = rng.standard_normal((32, 784)).astype(np.float32)
        numbers = [FittedNumber(name=f"n{i}", unit="", mean=0, deviation=1) for i in range(784)]
        features = TableFeatures(numbers=tuple(numbers), categories=())
    constants["w4"] = weights(CLASSES, 64)
    (spec,) = features.inputs
    nodes += [
        helper.make_node("Gemm", ["hidden", "w3"], ["d1"], transB=1),
        helper.make_node("Relu", ["d1"], ["d2"]),
        helper.make_node("Gemm", ["d2", "w4"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(spec.name, element, ["n", *spec.shape[1:]])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    found = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(found)
    return Model(name, found.SerializeToString(), spec.name, spec.datatype, rows, features)


class Servable(Protocol):
    """What can be placed as a version: a line's name, and the files of the network."""

    @property
    def name(self) -> str: ...

    def files(self) -> dict[str, bytes]: ...


class Version(NamedTuple):
    """A signed version of a model in a repository folder."""

    line: str
    digest: str


def place(found: Servable, root: Path, keys: Path) -> Version:
    """Write the model as version 1 of the line `name`, signed by a key trusted in `keys`."""
    signer = CryptoSigner.generate_ed25519()
    public = signer.public_key
    key = PublicKey(keyid=public.keyid, public=public.keyval["public"], owner="benchmarks")
    (keys / TRUSTED).mkdir(parents=True, exist_ok=True)
    (keys / TRUSTED / f"{key.keyid}.json").write_text(key.model_dump_json())
    files = found.files()
    manifest = Manifest.of(files)
    recipe = Recipe(
        line=found.name, snapshot="0" * 64, settings={}, stages={}, artifact=manifest.digest
    )
    files[MANIFEST_FILE] = canonical_json(manifest.model_dump(mode="json"))
    files[VERSION_FILE] = canonical_json(record(recipe))
    subjects = tuple(described(name, content) for name, content in files.items())
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "internalParameters": {"recipe": recipe.model_dump(mode="json"), "located": "0" * 64},
            "resolvedDependencies": [],
        },
        "runDetails": {
            "metadata": {"invocationId": "", "finishedOn": "2026-01-01T00:00:00+00:00"},
            "modelmint_machine": {"processor": ""},
        },
    }
    statement = Statement(subject=subjects, predicate_type=PROVENANCE, predicate=predicate)
    files[PROVENANCE_FILE] = signed(statement, [signer])
    folder = version_folder(root, found.name, "1")
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Version(found.name, recipe.digest)


class Served(NamedTuple):
    """A running server: its address, the headers it wants, and its process."""

    url: str
    headers: Mapping[str, str]
    process: "subprocess.Popen[bytes]"


@contextmanager
def modelmint(
    models: Iterable[Servable], folder: Path, *options: str, code: Path = ROOT
) -> Iterator[Served]:
    """Our model server with the models loaded and promoted; ended afterwards.

    `code` is the checkout it runs, to compare another one's.
    """
    root, keys = folder / "repository", folder / "keys"
    versions = [place(found, root, keys) for found in models]
    port = free_port()
    command = python(
        "deployments.serving", "--repository", str(root), "--port", str(port), *options
    )
    ours = {KEYS_SETTING: str(keys), "PYTHONPATH": str(code)}
    process = subprocess.Popen(command, cwd=code, env=os.environ | ours)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(f"{url}/v2/health/ready", process)
        key = (root / ".server" / "first-key").read_text()
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            promoted = {"version": "1", "recorded": "there is no store"}
            for line, digest in versions:
                wanted = {"parameters": {"version": "1", "digest": digest}}
                load = client.post(f"/v2/repository/models/{line}/load", json=wanted)
                load.raise_for_status()
                client.post(f"/v1/lines/{line}/promote", json=promoted).raise_for_status()
        yield Served(url, headers, process)
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port of loopback that nothing uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait(url: str, process: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    """Until the address answers 200; raises RuntimeError when it does not or the process ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")
