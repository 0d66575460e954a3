from typing import Any

import pytest
import torch

from models import mlp
from models.digests import json_digest
from models.layers import Served
from models.spec import Budget, Retraining
from tasks import checkpoint
from tasks.dataset import tensors
from tasks.jobs import CompressJob
from tasks.store import store
from tasks.students import StudentError, Students
from tests.tasks.conftest import TRAINING, Made, Trained

WIDE = mlp.Spec(size="small")


def students(trained: Trained, cache: str = "", **retraining: Any) -> Students:
    """Those of an untrained wide network: what is taught does not matter here."""
    job = CompressJob(
        model=WIDE,
        training=TRAINING,
        budget=Budget(retraining=Retraining.model_validate({"epochs": 4, **retraining})),
        dataset=trained.dataset,
        weights=trained.weights,
        cache=json_digest(cache) if cache else None,
    )
    signature = trained.dataset.signature
    torch.manual_seed(0)
    teacher = Served(WIDE.build(signature.features, signature.objective.width), signature.objective)
    rows, _ = tensors(trained.dataset, "train")
    return Students(job, teacher.eval(), rows)


def taught(found: Students, name: str, told: list[dict[str, Any]] | None = None) -> torch.Tensor:
    """All weights of the network after it has learnt."""
    served = found.taught(name, found.begun(name), (told if told is not None else []).append)
    return torch.cat([value.flatten() for value in served.parameters()])


@pytest.mark.parametrize("name", ["pruned-50", "student-tiny"])
def test_a_killed_retraining_goes_on_and_ends_with_the_same_bits(
    made: Made, trained: Trained, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = taught(students(trained), name)
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    kept = checkpoint.Checkpoint.keep

    def keep_and_fail(self: checkpoint.Checkpoint, place: checkpoint.Place) -> None:
        kept(self, place)
        if (place.epoch, place.step) == (2, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "keep", keep_and_fail)
    with pytest.raises(KeyboardInterrupt):
        taught(students(trained, name), name)
    monkeypatch.setattr(checkpoint.Checkpoint, "keep", kept)
    left = f"candidates/{json_digest(name)}/"
    assert [item.key for item in store().list(left)] == [f"{left}{name}.training"]
    told: list[dict[str, Any]] = []
    resumed = taught(students(trained, name), name, told)
    assert [(d["network"], d["epoch"]) for d in told] == [(name, 3), (name, 4)]
    assert torch.equal(resumed, whole)
    assert not list(store().list(left))


def test_what_is_asked_of_retraining_decides_the_weights(made: Made, trained: Trained) -> None:
    asked: list[dict[str, Any]] = [{}, {"soft": 0.0}, {"soft": 1.0}, {"lr": 0.5}, {"epochs": 2}]
    found = [taught(students(trained, **each), "pruned-50") for each in asked]
    assert torch.equal(taught(students(trained), "pruned-50"), found[0])
    for index, weights in enumerate(found):
        assert not any(torch.equal(weights, other) for other in found[:index]), asked[index]


def test_without_epochs_of_its_own_a_student_has_as_many_as_the_training(
    made: Made, trained: Trained
) -> None:
    assert students(trained, epochs=0).training.epochs == TRAINING.epochs
    assert students(trained, lr=0.5).training.optimizer.lr == TRAINING.optimizer.lr / 2


def test_a_student_no_smaller_than_its_teacher_is_refused(made: Made, trained: Trained) -> None:
    with pytest.raises(StudentError, match=r"student-base has .* a student must be smaller"):
        students(trained).begun("student-base")
