"""A training whose process is killed, and what it ends with when it goes on."""

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from models.digests import json_digest
from tasks.isolated import IsolatedError, environment, run
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


def kill_child(_: object = None) -> None:
    """End the process that trains, as the kernel does when memory is short."""
    for process in psutil.Process().children(recursive=True):
        if "fit_keeping_every_step" in " ".join(process.cmdline()):
            process.kill()


def assert_a_killed_training_goes_on_to_the_same_bits(wanted: TrainJob) -> None:
    """Once undisturbed, once killed after its first epoch and started again."""
    named = [wanted.checkpoint, "killing"]
    first: list[dict[str, Any]] = []
    undisturbed = wanted.model_copy(update={"checkpoint": json_digest([*named, "whole"])})
    whole = train(undisturbed, told=first.append)
    cut = wanted.model_copy(update={"checkpoint": json_digest([*named, "cut"])})
    with pytest.raises(IsolatedError, match="SIGKILL"):
        train(cut, "tests.tasks.samples:fit_keeping_every_step", kill_child)
    told: list[dict[str, Any]] = []
    resumed = train(cut, told=told.append)
    assert told[0]["epoch"] > 1, "it started anew instead of going on"
    assert told[-1]["epoch"] == first[-1]["epoch"]
    assert resumed.digest == whole.digest
