"""Made-up speech through the real stages: cleaned, trained, judged, compressed, served."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from deployments.serving.protocol import ProtocolError
from deployments.serving.session import open_version
from models import transformer
from models.data import RefusedRequest
from models.digests import bytes_digest, json_digest
from models.masking import SpecAugment
from models.padding import LENGTH, trimmed
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.spec import Budget, Gate, Optimizer, Retraining, Training
from models.waves import write_wave
from tasks import candidates, score_object
from tasks.compress import UNCOMPRESSED, search
from tasks.dataset import partitions, tensors
from tasks.evaluate import measure
from tasks.gate import judge
from tasks.jobs import CompressJob, EvaluateJob, GateJob, TrainJob
from tasks.refs import Artifact, Dataset, Report, Weights
from tasks.store import store
from tasks.trainer import fit, predict, restore
from tests.conftest import new_bucket, tell_workers
from tests.models.clips import RATE, SAID, TALK, say, talk, text, texts, tone
from tests.tasks.conftest import cleaned
from tests.tasks.killing import assert_a_killed_training_goes_on_to_the_same_bits

CLIPS = 120
MODEL = transformer.Spec(size="tiny", reach=3, dropout=0.0)
TRAINING = Training(
    epochs=40, batch_size=8, optimizer=Optimizer(lr=0.01), clip=1.0, device="cpu",
    augmentation=SpecAugment(times=1, bands=1),
)  # fmt: skip


class Made(NamedTuple):
    """A tiny recogniser and what led to it."""

    dataset: Dataset
    weights: Weights
    report: Report
    artifact: Artifact


@pytest.fixture(scope="module")
def made(dask_service: None) -> Iterator[Made]:
    del dask_service
    with new_bucket() as bucket:
        tell_workers(bucket)
        store().put("raw/talk/texts.txt", texts(range(CLIPS)))
        for start in range(0, CLIPS, 40):
            store().put(f"raw/talk/{start}.tar", talk(range(start, start + 40)))
        dataset = cleaned(TALK, SAID)
        job = TrainJob(
            model=MODEL, training=TRAINING, dataset=dataset, checkpoint=json_digest("talk")
        )
        weights = fit(job, lambda _: None)
        report = measure(
            EvaluateJob(model=MODEL, dataset=dataset, weights=weights, threads=1, confidence=0.9),
            lambda _: None,
        )
        budget = Budget(quality_loss=0.5, slowdown=100, candidates=("int8-dynamic",))
        artifact = search(
            CompressJob(
                model=MODEL, training=TRAINING, budget=budget, dataset=dataset, weights=weights
            ),
            lambda _: None,
        )
        yield Made(dataset, weights, report, artifact)


def test_no_sentence_is_in_two_splits(made: Made) -> None:
    found = [
        {text for table in partitions(made.dataset, subset) for text in table["transcript"]}
        for subset in ("train", "validation", "test")
    ]
    assert sum(map(len, found)) == len(set.union(*found)) == len({text(n) for n in range(CLIPS)})
    assert sum(made.dataset.rows.values()) == CLIPS


def test_it_learns_to_hear(made: Made) -> None:
    found = made.report.metrics["cer"]
    assert found.value < 0.2 < made.report.baselines["most frequent"]["cer"]
    assert found.low <= found.value <= found.high
    assert set(made.report.metrics) == {"cer", "wer"}


def test_the_gate_judges_letters(made: Made) -> None:
    job = GateJob(
        gate=Gate(floors={"cer": 0.3}), budget=Budget(quality_loss=0.9, slowdown=100),
        dataset=made.dataset, artifact=made.artifact, report=made.report, champion=None,
    )  # fmt: skip
    verdict = judge(job, lambda _: None)
    assert verdict.decision == "promote"
    assert verdict.metrics["cer"] < 0.2
    strict = job.model_copy(update={"gate": Gate(floors={"cer": 0.0, "wer": 0.0})})
    if verdict.metrics["cer"]:
        assert judge(strict, lambda _: None).decision == "refuse"


@pytest.mark.slow
def test_a_compressed_attention_network_that_collapses_is_given_up_and_never_chosen(
    made: Made,
) -> None:
    """Before CTC finds its first letter a recogniser says nothing at all: that is a collapse."""
    teacher = transformer.Spec(size="small", reach=3, dropout=0.0)
    training = TRAINING.model_copy(update={"epochs": 12, "optimizer": Optimizer(lr=2e-3)})
    job = TrainJob(
        model=teacher, training=training, dataset=made.dataset, checkpoint=json_digest("teacher")
    )
    weights = fit(job, lambda _: None)
    budget = Budget(
        quality_loss=0.9, candidates=("student-tiny", "student-tiny+int8-dynamic"),
        retraining=Retraining(epochs=4, lr=0.1),
    )  # fmt: skip

    def searched(**changes: bool) -> tuple[Artifact, list[int]]:
        asked = budget.model_copy(update=changes)
        told: list[dict[str, Any]] = []
        found = search(
            CompressJob(
                model=teacher, training=training, budget=asked, dataset=made.dataset,
                weights=weights,
            ),
            told.append,
        )  # fmt: skip
        return found, [detail["epoch"] for detail in told if "epoch" in detail]

    given_up, epochs = searched()
    assert epochs == [1, 2]
    for reason in given_up.failed.values():
        assert reason.startswith("HopelessError: student-tiny was given up halfway: cer ")
    assert set(given_up.failed) == set(budget.candidates)
    ended, epochs = searched(exhaustive=True)
    assert epochs == [1, 2, 3, 4]
    [plain, *others] = ended.candidates
    assert plain.metrics["cer"] < 0.4
    assert [c.name for c in others] == list(budget.candidates)
    assert all(c.collapsed and c.size < plain.size for c in others)
    assert given_up.chosen == ended.chosen == UNCOMPRESSED


def test_training_again_gives_the_same_bits(made: Made) -> None:
    short = TRAINING.model_copy(update={"epochs": 2})
    found = {
        fit(
            TrainJob(
                model=MODEL, training=short, dataset=made.dataset, checkpoint=json_digest(name)
            ),
            lambda _: None,
        ).digest
        for name in ("first", "second")
    }
    assert len(found) == 1


def test_a_killed_training_goes_on_to_the_same_bits(made: Made) -> None:
    model = MODEL.model_copy(update={"dropout": 0.1})
    training = TRAINING.model_copy(update={"epochs": 3})
    job = TrainJob(
        model=model, training=training, dataset=made.dataset, checkpoint=json_digest("said")
    )
    assert_a_killed_training_goes_on_to_the_same_bits(job)


def test_the_served_model_hears_a_clip_and_refuses_what_is_none(made: Made) -> None:
    files = {
        name: store().get_file(made.artifact.manifest, name)
        for name in (MODEL_FILE, SIGNATURE_FILE, SAMPLE_FILE)
    }
    served = open_version("talk", "1", made.artifact.digest, files)
    heard = 0
    for number in range(20):
        clip = write_wave(say(text(number), number), RATE)
        read, rows = served.signature.features.request(clip, "audio/wav")
        (answer,) = served.answers(served.run(read))
        assert rows == 1
        assert 0 < answer["confidence"] <= 1
        heard += answer["transcript"] == text(number)
    assert heard >= 14
    for payload, reason in (
        (write_wave(tone(400, 0.0), RATE), "the clip is empty"),
        (write_wave(tone(400, 73.0), RATE), "it lasts 73.0 s, over 3 s"),
        (write_wave(tone(400, 1.0), 16_000), "16,000 samples a second"),
        (write_wave(tone(400, 1.0), RATE)[:-3], "cut short"),
    ):
        with pytest.raises(RefusedRequest, match=reason):
            served.signature.features.request(payload, "audio/wav")
    longer = {"spectrogram": np.zeros((1, 9000, 16), np.float32), LENGTH: np.array([9000])}
    with pytest.raises(ProtocolError) as refused:
        served.run(longer)
    assert refused.value.status == 400


def test_the_exported_network_answers_as_the_trained_one_at_any_length(made: Made) -> None:
    from tasks.inference import predict as served
    from tasks.inference import session

    signature = made.dataset.signature
    network = restore(MODEL, made.dataset, made.weights)
    inputs, _ = tensors(made.dataset, "test")
    names = [spec.name for spec in signature.features.inputs]
    expected = predict(network, names, inputs)
    exported = candidates.export(
        network, signature, trimmed({n: t[3:6] for n, t in inputs.items()})
    )
    plain = next(c for c in made.artifact.candidates if c.name == UNCOMPRESSED)
    assert bytes_digest(exported) == plain.blake3, "other clips lead to another graph"
    model = session(exported)
    np.testing.assert_allclose(served(model, inputs), expected, atol=1e-5)
    np.testing.assert_allclose(score_object.predict(model, inputs), expected, atol=1e-5)
    count = int(inputs[LENGTH][0])
    alone = {"spectrogram": inputs["spectrogram"][:1, :count], LENGTH: inputs[LENGTH][:1]}
    (found,) = model.run(None, alone)
    np.testing.assert_allclose(found[0], expected[0, : found.shape[1]], atol=1e-5)
