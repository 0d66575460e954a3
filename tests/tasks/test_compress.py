from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from models import mlp
from models.digests import json_digest
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from models.spec import Budget, Optimizer, Retraining
from tasks import publish
from tasks.compress import choose, search
from tasks.dataset import tensors
from tasks.inference import predict, session
from tasks.isolated import environment, run
from tasks.jobs import CompressJob, TrainJob
from tasks.plots import front_of
from tasks.refs import Artifact, Candidate
from tasks.store import BUCKET_SETTING, store
from tasks.trainer import fit, restore
from tests.conftest import environment as environment_of
from tests.tasks.conftest import ANY_BUDGET, MODEL, TRAINING, Made, Trained, compress_job

PLAIN, SMALL, SMALLEST = "fp32", "int8-dynamic", "int8-static"


def candidate(name: str, size: int, loss: float) -> Candidate:
    return Candidate(name=name, size=size, blake3="0" * 64, metrics={}, loss=loss)


def measured(small: float = 0.0, smallest: float = 0.0) -> dict[str, Candidate]:
    return {
        PLAIN: candidate(PLAIN, 900, 0.0),
        SMALL: candidate(SMALL, 300, small),
        SMALLEST: candidate(SMALLEST, 250, smallest),
    }


# ---- choose


def test_the_smallest_within_the_budget_is_chosen() -> None:
    assert choose(Budget(), measured()) == SMALLEST


def test_a_candidate_that_loses_too_much_is_not_chosen() -> None:
    budget = Budget(quality_loss=0.01)
    assert choose(budget, measured(smallest=0.02)) == SMALL
    assert choose(budget, measured(smallest=0.01)) == SMALLEST
    assert choose(budget, measured(small=0.5, smallest=0.5)) == PLAIN


def test_a_candidate_of_undefined_quality_is_not_chosen() -> None:
    assert choose(Budget(), measured(smallest=float("nan"))) == SMALL


def test_an_excluded_candidate_is_not_chosen() -> None:
    assert choose(Budget(exclude=(SMALLEST,)), measured()) == SMALL


def test_too_large_for_the_budget_is_not_chosen() -> None:
    assert choose(Budget(size_mb=0.00027), measured()) == SMALLEST
    assert choose(Budget(size_mb=0.0001), measured()) == PLAIN


def test_a_form_that_collapses_is_marked_and_never_chosen() -> None:
    broken = measured()
    broken[SMALLEST] = broken[SMALLEST].model_copy(update={"collapsed": True})
    assert choose(Budget(quality_loss=0.99), broken) == SMALL


# ---- search


def test_another_process_gives_the_same_bytes(trained: Trained) -> None:
    job = compress_job(trained.dataset, trained.weights).model_dump_json()
    answer = run("tasks.compress:search", job, environment("fast", 1), lambda _: None)
    found, here = Artifact.model_validate_json(answer), trained.artifact
    assert [c.blake3 for c in found.candidates] == [c.blake3 for c in here.candidates]
    assert [c.metrics for c in found.candidates] == [c.metrics for c in here.candidates]
    assert found.digest == here.digest


def test_the_artifact_is_whole_and_its_sample_true(trained: Trained) -> None:
    artifact = trained.artifact
    assert set(artifact.manifest.files) == {MODEL_FILE, SIGNATURE_FILE, SAMPLE_FILE}
    assert all(store().exists(key) for key in artifact.stored)
    signature = Signature.model_validate_json(store().get_file(artifact.manifest, SIGNATURE_FILE))
    assert signature == trained.dataset.signature
    sample = safetensors.numpy.load(store().get_file(artifact.manifest, SAMPLE_FILE))
    expected = sample.pop(signature.objective.output.name)
    found = predict(session(store().get_file(artifact.manifest, MODEL_FILE)), sample)
    assert signature.closeness(found, expected) < 0.1


def test_the_uncompressed_form_answers_as_the_network_does(trained: Trained) -> None:
    rows, _ = tensors(trained.dataset, "test")
    (plain,) = (c for c in trained.artifact.candidates if c.name == PLAIN)
    assert plain.loss == 0.0
    found = predict(session(store().get_content(plain.blake3)), rows)
    served = restore(MODEL, trained.dataset, trained.weights)
    with torch.inference_mode():
        expected = served(*(torch.from_numpy(t) for t in rows.values())).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_every_candidate_takes_batches_of_any_size_and_names_no_path(trained: Trained) -> None:
    rows, _ = tensors(trained.dataset, "test")
    for candidate in trained.artifact.candidates:
        content = store().get_content(candidate.blake3)
        assert len(content) == candidate.size
        onnx.checker.check_model(onnx.load_model_from_string(content))
        assert b"/work" not in content
        assert b"site-packages" not in content
        for count in (1, 5):
            few = {name: tensor[:count] for name, tensor in rows.items()}
            assert predict(session(content), few).shape == (count,)


def test_a_budget_nothing_meets_is_reported(trained: Trained) -> None:
    budget = ANY_BUDGET.model_copy(update={"size_mb": 1e-6})
    found = search(compress_job(trained.dataset, trained.weights, budget), lambda _: None)
    assert (found.chosen, found.within_budget) == (PLAIN, False)
    unwanted = ANY_BUDGET.model_copy(update={"exclude": (PLAIN, *ANY_BUDGET.candidates)})
    found = search(compress_job(trained.dataset, trained.weights, unwanted), lambda _: None)
    assert (found.chosen, found.within_budget) == (PLAIN, False)


def test_the_front_is_what_no_other_beats() -> None:
    best, worse, cheap = (
        candidate("a", 300, 0.0), candidate("b", 400, 0.1), candidate("c", 200, 0.2),
    )  # fmt: skip
    assert front_of([best, worse, cheap]) == [best, cheap]
    assert front_of([best, best.model_copy(update={"name": "d"})])[0] == best


def test_the_plot_is_stored(trained: Trained) -> None:
    plots = trained.artifact.observed["plots"]
    assert isinstance(plots, dict)
    assert store().get_content(str(plots["compression"])).startswith(b"\x89PNG")


# ---- smaller networks


SHRUNK = ("pruned-50", "pruned-50+int8-static", "student-tiny")
SMALL_MODEL = mlp.Spec(size="small")


@pytest.fixture(scope="module")
def wide(_made: Made) -> CompressJob:
    """A network of size small for the trips, to be compressed into smaller ones."""
    with environment_of(**{BUCKET_SETTING: _made.bucket}):
        fitting = TrainJob(
            model=SMALL_MODEL,
            # Students have six times its epochs: what is asked here is not how well they learn.
            training=TRAINING.model_copy(update={"epochs": 10}),
            dataset=_made.trips,
            checkpoint=json_digest("wide"),
        )
        weights = fit(fitting, lambda _: None)
    budget = Budget(
        quality_loss=0.5, candidates=SHRUNK, exhaustive=True, retraining=Retraining(epochs=60)
    )
    return CompressJob(
        model=SMALL_MODEL, training=TRAINING, budget=budget, dataset=_made.trips, weights=weights
    )


def changed(job: CompressJob, **budget: Any) -> CompressJob:
    return job.model_copy(update={"budget": job.budget.model_copy(update=budget)})


@pytest.mark.slow
def test_smaller_networks_are_trained_and_another_process_makes_the_same(
    made: Made, wide: CompressJob
) -> None:
    told: list[dict[str, Any]] = []
    first, again = (
        Artifact.model_validate_json(
            run("tasks.compress:search", wide.model_dump_json(), environment("fast", 1), listen)
        )
        for listen in (told.append, lambda _: None)
    )
    assert again.candidates == first.candidates
    assert again.digest == first.digest
    assert (first.failed, first.skipped) == ({}, {})
    sizes = {c.name: c.size for c in first.candidates}
    assert list(sizes) == [PLAIN, *SHRUNK]
    assert sizes["pruned-50"] < 0.7 * sizes[PLAIN]
    assert sizes["pruned-50+int8-static"] < 0.8 * sizes["pruned-50"]
    assert all(c.loss < 0.5 for c in first.candidates), first.candidates
    epochs = [d["network"] for d in told if "epoch" in d]
    assert epochs == ["pruned-50"] * 60 + ["student-tiny"] * 60, "a network was trained twice"
    memory = first.observed["memory_bytes"]
    assert isinstance(memory, dict)
    assert set(memory) == set(sizes)
    assert all(isinstance(m, int) and m > 100_000 for m in memory.values())


def test_hopeless_networks_are_not_trained_and_it_is_said_why(
    made: Made, wide: CompressJob
) -> None:
    lazy = changed(
        wide,
        candidates=("student-base", "student-tiny", "pruned-50", "pruned-90"),
        exhaustive=False,
        exclude=("pruned-90",),
    )
    told: list[dict[str, Any]] = []
    found = search(lazy, told.append)
    assert "a student must be smaller" in found.failed["student-base"]
    assert found.chosen == "student-tiny"
    assert "student-tiny is smaller" in found.skipped["pruned-50"]
    assert "budget.exclude" in found.skipped["pruned-90"]
    assert {d["network"] for d in told if "epoch" in d} == {"student-tiny"}
    tight = search(changed(lazy, size_mb=1e-4), lambda _: None)
    assert "over budget.size_mb" in tight.skipped["student-tiny"]
    assert not tight.within_budget
    rows = publish.compression_table(found)
    assert {row["candidate"] for row in rows if row["chosen"] == "skipped"} == set(found.skipped)


def test_a_student_whose_loss_is_no_number_is_reported(made: Made, wide: CompressJob) -> None:
    wild = wide.training.model_copy(update={"optimizer": Optimizer(name="sgd", lr=10, momentum=0)})
    job = changed(wide, candidates=("student-tiny",), retraining=Retraining(epochs=4, lr=100))
    found = search(job.model_copy(update={"training": wild}), lambda _: None)
    assert found.failed["student-tiny"].startswith("TrainingError: the loss is ")
    assert found.chosen == PLAIN
