"""Data-parallel training on the real Dask workers: exact, resumable, and it fails as one."""

import contextlib
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from models import mlp
from models.digests import json_digest
from models.spec import Optimizer, Training
from tasks import cluster, gang, progress
from tasks.isolated import IsolatedError, name_of
from tasks.jobs import TrainJob
from tasks.ranks import Ranks
from tasks.refs import Dataset, Weights
from tasks.trainer import fit, restore
from tests.tasks.conftest import Made
from tests.tasks.samples import Word

KEEPING = "tests.tasks.samples:fit_keeping_every_step"
MODEL = mlp.Spec(size="tiny")
TRAINING = Training(
    epochs=8, batch_size=16, ranks=2, optimizer=Optimizer(lr=0.02), seed=3, device="cpu"
)


def job(name: str, dataset: Dataset, **changes: Any) -> TrainJob:
    training = TRAINING.model_copy(update=changes)
    return TrainJob(
        model=MODEL, training=training, dataset=dataset, checkpoint=json_digest(["gang", name])
    )


def train(wanted: TrainJob, target: str = "tasks.trainer:fit") -> Weights:
    return gang.together(
        target, wanted, Weights, ranks=wanted.training.ranks, stage="train", profile="fast",
        threads=1,
    )  # fmt: skip


def kill_a_rank(event: progress.Event) -> None:
    """End the second of the processes that train, after an epoch."""
    if "epoch" in event.detail:
        for process in _ranks(KEEPING, 1):
            process.kill()


def test_ranks_repeat_on_any_number_of_workers_and_go_on_after_one_was_killed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(job("whole", made.trips))
    single = fit(job("single", made.trips, ranks=1), lambda _: None)
    assert whole.digest != single.digest
    # The mean of the halves' gradients is the gradient of the batch.
    here, there = (
        torch.cat([p.flatten() for p in restore(MODEL, made.trips, w).parameters()])
        for w in (whole, single)
    )
    torch.testing.assert_close(here, there, rtol=1e-2, atol=1e-3)

    one_worker = cluster.workers()[:1]
    monkeypatch.setattr(cluster, "workers", lambda **_: one_worker)
    cut = job("cut", made.trips)
    with (
        progress.listening(kill_a_rank),
        pytest.raises(IsolatedError, match=r"rank 1 of 2: .*ended without an answer \(SIGKILL\)"),
    ):
        train(cut, KEEPING)
    told: list[dict[str, Any]] = []
    with progress.listening(lambda event: told.append(event.detail)):
        resumed = train(cut)
    assert resumed.digest == whole.digest
    assert told[0]["epoch"] > 1, "it started anew instead of going on"


@pytest.mark.parametrize(
    ("function", "said"),
    [("fail", "ValueError: SIGKILL"), ("die", r"ended without an answer \(SIGKILL\)")],
)
def test_a_rank_that_fails_is_named_and_nobody_is_left(
    workers: Callable[[str], None], function: str, said: str
) -> None:
    with pytest.raises(IsolatedError, match=rf"rank \d of 3: .*{said}"):
        gang.together(
            f"tests.tasks.samples:{function}", Word(text="SIGKILL"), Weights, ranks=3,
            stage="train", profile="fast", threads=1,
        )  # fmt: skip
    _, alive = psutil.wait_procs(_ranks(f"tests.tasks.samples:{function}", *range(3)), timeout=30)
    assert not alive


def _ranks(target: str, *numbers: int) -> list[psutil.Process]:
    """The processes below this one that are these ranks of the target."""
    names = {name_of(target, str(number)) for number in numbers}
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() in names:
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("workers", "ranks", "expected"),
    [
        (["a", "b"], 2, {"a": [0], "b": [1]}),
        (["a", "b"], 5, {"a": [0, 2, 4], "b": [1, 3]}),
        (["a", "b", "c"], 2, {"a": [0], "b": [1]}),
        (["a"], 3, {"a": [0, 1, 2]}),
    ],
)
def test_ranks_are_spread_over_the_workers(
    workers: list[str], ranks: int, expected: dict[str, list[int]]
) -> None:
    assert gang.placed(workers, ranks, gpu=False) == expected


def test_a_rank_takes_a_worker_and_a_gpu_of_its_own() -> None:
    with pytest.raises(ValueError, match="no Dask worker"):
        gang.placed([], 2, gpu=False)
    with pytest.raises(ValueError, match=r"training\.ranks is 2, and only 1 Dask workers have"):
        gang.placed(["a"], 2, gpu=True)


def test_a_batch_must_be_cut_into_ranks_and_as_many_must_be_started(
    made: Made, workers: Callable[[str], None]
) -> None:
    with pytest.raises(ValueError, match="cannot be cut into 6 equal parts"):
        Training(batch_size=16, ranks=3, accumulate=2)
    with pytest.raises(ValueError, match=r"training\.ranks is 2, 1 were started"):
        fit(job("alone", made.trips), lambda _: None)
    assert Ranks().first
