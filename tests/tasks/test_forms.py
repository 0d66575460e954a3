"""The forms a network is compressed into: their bytes repeat; why one is not made or not chosen."""

from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from models import cnn, mlp, rnn
from models.data import Features, Tensors
from models.digests import json_digest
from models.forms import QUANTIZERS
from models.images import ImageFeatures, ImageSize
from models.language import NextToken
from models.layers import Served
from models.objectives import Classification, Objective
from models.passages import PassageFeatures
from models.signature import Signature
from models.spec import Budget, Family
from models.tables import FittedNumber, TableFeatures
from models.texts import TextFeatures
from models.vocabulary import Characters
from tasks import candidates, forms, publish
from tasks.compress import search
from tasks.dataset import tensors
from tasks.inference import predict, session
from tasks.refs import Weights
from tasks.store import StoreError, content_key, store
from tasks.trainer import HISTORY_FILE, WEIGHTS_FILE
from tests.tasks import samples
from tests.tasks.conftest import ANY_BUDGET, Trained, compress_job

PLAIN, SMALL, SMALLEST = "fp32", "int8-dynamic", "int8-static"


def stored(state: dict[str, torch.Tensor]) -> Weights:
    """Weights as a training leaves them."""
    manifest = store().put_folder(
        {WEIGHTS_FILE: safetensors.torch.save(state), HISTORY_FILE: b"[]"}
    )
    return Weights(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        manifest=manifest,
        parameters=1,
    )


def test_a_form_that_ruins_the_quality_is_not_chosen(trained: Trained) -> None:
    # Beside a weight for "is missing", which no row needs, int8 has no steps left for the others.
    content = store().get_file(trained.weights.manifest, WEIGHTS_FILE)
    state = safetensors.torch.load(content)
    first = next(value for value in state.values() if value.ndim == 2 and value.shape[0] == 16)
    numbers = len(trained.dataset.signature.features.numbers)  # type: ignore[attr-defined]
    first[:, numbers : 2 * numbers] = 1e5
    spoilt = stored(state)
    found = search(compress_job(trained.dataset, spoilt, Budget(slowdown=100)), lambda _: None)
    losses = {c.name: c.loss for c in found.candidates}
    assert losses[PLAIN] == 0.0
    assert losses[SMALL] > 0.5
    assert losses[SMALLEST] > 0.5
    assert found.chosen == PLAIN
    assert found.within_budget


def test_every_form_gives_bytes_that_repeat(trained: Trained) -> None:
    budget = ANY_BUDGET.model_copy(update={"candidates": QUANTIZERS})
    first, again = (
        search(compress_job(trained.dataset, trained.weights, budget), lambda _: None)
        for _ in range(2)
    )
    assert [c.name for c in first.candidates] == [PLAIN, *QUANTIZERS]
    assert first.candidates == again.candidates
    assert first.failed == {}
    made = {c.name: store().get_content(c.blake3) for c in first.candidates}
    assert b"MatMulNBits" in made["int4-weights"]


def unknown_operator(plain: bytes) -> bytes:
    """The model with an operator that no runtime has."""
    model = onnx.load_model_from_string(plain)
    model.graph.node[0].op_type = "Nonesuch"
    return model.SerializeToString()


def no_words(*_: Any, **__: Any) -> None:
    raise RuntimeError("no words for it")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"dynamic": unknown_operator}, "CrashError: int8-dynamic does not run"),
        ({"quantization.quantize_dynamic": no_words}, "QuantizerError: ONNX Runtime cannot"),
    ],
)
def test_a_form_the_runtime_refuses_is_reported(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any], reason: str
) -> None:
    for name, function in broken.items():
        monkeypatch.setattr(f"tasks.candidates.{name}", function)
    found = search(compress_job(trained.dataset, trained.weights), lambda _: None)
    assert set(found.failed) == {SMALL}
    assert found.failed[SMALL].startswith(reason)


@pytest.mark.parametrize("error", [KeyError("a bug"), StoreError("the store is down")])
def test_a_bug_or_an_outage_is_no_property_of_a_form(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any) -> bytes:
        raise error

    monkeypatch.setattr(candidates, "quantized", broken)
    with pytest.raises(type(error)):
        search(compress_job(trained.dataset, trained.weights), lambda _: None)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        Fail("[ONNXRuntimeError] : 1 : FAIL : write failed, No space left on device"),
    ],
)
def test_what_this_machine_lacks_is_no_property_of_a_form(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Or another form would be chosen here than where the version is replayed."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tasks.candidates.quantization.quantize_dynamic", broken)
    with pytest.raises(type(error)):
        search(compress_job(trained.dataset, trained.weights), lambda _: None)


def test_calibration_takes_enough_rows() -> None:
    few: Tensors = {"x": np.zeros((15, 2), np.float32)}
    with pytest.raises(candidates.CalibrationError, match="15 training rows are too few"):
        candidates.quantized("int8-static", b"", few)


def test_calibration_rows_are_spread_over_all_training_rows(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may all be of one class, or of one day."""
    given: list[Tensors] = []

    def seen(name: str, plain: bytes, calibration: Tensors) -> bytes:
        given.append(calibration)
        return plain

    monkeypatch.setattr(forms, "CALIBRATION_ROWS", 20)
    monkeypatch.setattr(candidates, "quantized", seen)
    search(compress_job(trained.dataset, trained.weights), lambda _: None)
    whole, _ = tensors(trained.dataset, "train")
    stride = -(-len(whole["numbers"]) // 20)
    np.testing.assert_array_equal(given[0]["numbers"], whole["numbers"][::stride])
    assert stride > 1


def test_a_form_that_crashes_is_reported_and_the_others_go_on(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SMALLEST_CALIBRATION", 1000)
    found = search(compress_job(trained.dataset, trained.weights), lambda _: None)
    assert "too few to calibrate int8-static" in found.failed[SMALLEST]
    assert SMALLEST not in {c.name for c in found.candidates}
    assert found.chosen != SMALLEST
    table = publish.compression_table(found)
    assert [row["candidate"] for row in table if row["chosen"] == "failed"] == [SMALLEST]


def test_what_was_measured_is_found_again_by_a_search_that_was_killed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"cache": json_digest("a search")}
    job = compress_job(trained.dataset, trained.weights).model_copy(update=cache)
    made = candidates.quantized
    built: list[str] = []

    def counted(name: str, plain: bytes, calibration: Tensors) -> bytes:
        if name == "int8-weights" and len(built) == 2:
            raise KeyboardInterrupt
        built.append(name)
        return made(name, plain, calibration)

    monkeypatch.setattr(candidates, "quantized", counted)
    with pytest.raises(KeyboardInterrupt):
        search(job, lambda _: None)
    assert built == [SMALL, SMALLEST]
    built.append("resumed")
    found = search(job, lambda _: None)
    assert built[3:] == ["int8-weights"]
    assert found.candidates == trained.artifact.candidates
    other = job.model_copy(update={"budget": Budget(quality_loss=0.4)})
    assert search(other, lambda _: None).candidates == found.candidates
    assert len(built) == 4


LETTERS = Characters(known=tuple("abcdef"))
OPINION = Classification(target="label", labels=("bad", "good"))
FEATURES = TableFeatures(
    numbers=(FittedNumber(name="n", unit="1", mean=1, deviation=2),), categories=()
)
NETWORKS: list[tuple[Family, Features, Objective]] = [
    (mlp.Spec(size="small"), FEATURES, samples.MINUTES),
    (cnn.Spec(size="small"), ImageFeatures(size=ImageSize(), mean=90, deviation=60), samples.SHAPE),
    (rnn.Classifier(size="small", pairs=0), TextFeatures(length=9, vocabulary=LETTERS), OPINION),
    (rnn.Writer(size="tiny"), PassageFeatures(length=9, vocabulary=LETTERS), NextToken()),
]


@pytest.mark.parametrize(("model", "features", "objective"), NETWORKS)
def test_float16_halves_a_network_that_takes_and_gives_what_it_did(
    model: Family, features: Features, objective: Objective
) -> None:
    signature = Signature(features=features, objective=objective).served(model)
    random = np.random.default_rng(0)
    rows: Tensors = {
        spec.name: random.integers(0, 5, (16, *[9 if n < 0 else n for n in spec.shape[1:]])).astype(
            spec.dtype
        )
        for spec in signature.features.inputs
    }
    torch.manual_seed(0)
    network = model.build(signature.features, objective.width)
    plain = candidates.export(Served(network, objective).eval(), signature, rows)
    found = candidates.quantized("fp16", plain, rows)
    assert found == candidates.quantized("fp16", plain, rows)
    graph = onnx.load_model_from_string(found).graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    assert len(found) < 0.65 * len(plain)
    for ours, theirs in zip(
        session(found).get_outputs(), session(plain).get_outputs(), strict=True
    ):
        assert (ours.name, ours.type, ours.shape) == (theirs.name, theirs.type, theirs.shape)
    expected = predict(session(plain), rows)
    np.testing.assert_allclose(predict(session(found), rows), expected, rtol=0.01, atol=0.01)


def test_values_beyond_float16_are_a_collapse_and_not_chosen(trained: Trained) -> None:
    content = store().get_file(trained.weights.manifest, WEIGHTS_FILE)
    state = safetensors.torch.load(content)
    biases = sorted(name for name in state if name.endswith("bias"))
    first, second = (name.replace("bias", "weight") for name in biases)
    # To a ReLU between them that is the same network.
    for name, factor in ((first, 1e7), (biases[0], 1e7), (second, 1e-7)):
        state[name] *= factor
    spoilt = stored(state)
    budget = Budget(quality_loss=0.4, candidates=("fp16",))
    found = search(compress_job(trained.dataset, spoilt, budget), lambda _: None)
    [plain, half] = found.candidates
    assert plain.metrics["rmse"] == pytest.approx(trained.report.metrics["rmse"].value, rel=0.5)
    assert half.collapsed
    assert found.chosen == PLAIN
