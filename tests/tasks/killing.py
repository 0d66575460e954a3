"""A training whose process is killed again and again, and what it ends with when it goes on."""

from collections.abc import Callable
from typing import Any

from models.digests import json_digest
from tasks.isolated import environment, run
from tasks.jobs import TrainJob
from tasks.refs import Weights


def train(
    wanted: TrainJob,
    target: str = "tasks.trainer:fit",
    told: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Weights:
    """Train in a child process."""
    variables = environment(wanted.training.profile, wanted.training.threads)
    return Weights.model_validate_json(run(target, wanted.model_dump_json(), variables, told))


def assert_a_killed_training_goes_on_to_the_same_bits(wanted: TrainJob) -> None:
    """Once undisturbed, once killed at several steps and started again after each."""
    named = [wanted.checkpoint, "killing"]
    first: list[dict[str, Any]] = []
    undisturbed = wanted.model_copy(update={"checkpoint": json_digest([*named, "whole"])})
    whole = train(undisturbed, told=first.append)
    cut = wanted.model_copy(update={"checkpoint": json_digest([*named, "cut"])})
    told: list[dict[str, Any]] = []
    resumed = train(cut, "tests.tasks.samples:fit_killed_at_some_steps", told.append)
    places = [detail["from"] for detail in told if "from" in detail]
    assert places[0] == [0, 0]
    assert places == sorted(places)
    assert len({tuple(place) for place in places}) == len(places) == 5, "it started anew"
    assert sum(step > 0 for _, step in places) >= 2, "it was not killed within epochs"
    assert places[-1][0] > 0, "it was not killed after its first epoch"
    # None twice, as by one that began it anew; one killed between keeping and telling tells none.
    epochs = [detail["epoch"] for detail in told if "epoch" in detail]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == first[-1]["epoch"]
    assert resumed.digest == whole.digest
