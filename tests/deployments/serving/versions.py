"""Real versions: small ONNX networks with true digests, signed."""

import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from securesystemslib.signer import CryptoSigner

from deployments.serving.folder import version_folder
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
from models.trust import TRUSTED, PublicKey, Trust
from models.version import Recipe, record
from tests.deployments.serving.datatypes import EveryDatatype

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
        folder = version_folder(root, self.line, number)
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


def own_version(nodes: list[Any], numbers: Any, **weights: Any) -> Version:
    """A regression of `numbers` [n, 2]; its network ends in `y` [n, 1] and has weights `w`."""
    ends = [helper.make_node("Reshape", ["y", "shape"], ["prediction"])]
    model = network(
        [*nodes, *ends],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        w=np.array([[1.0], [2.0]], np.float32),
        shape=np.array([-1], np.int64),
        **weights,
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
