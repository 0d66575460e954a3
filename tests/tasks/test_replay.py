"""What a replay says of what is not as it was recorded: which part, of which stage, from what."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from models.digests import json_digest
from models.version import Recipe, StageRecord
from tasks.recorded import CannotReplayError, ChangedCodeError, ChangedEnvironmentError
from tasks.replay import UNKNOWN_CAUSE, check_identity, compared, other_numbers
from tasks.stage import StageRun

GOLDEN = Path(__file__).parents[1] / "golden" / "current" / "diabetes"
RECIPE = Recipe.model_validate(orjson.loads((GOLDEN / "version.json").read_bytes())["body"])
TRAIN = RECIPE.stages["train"]


def identity(**changes: Any) -> dict[str, Any]:
    """What training is a function of here: as recorded, but for the changes."""
    return {**TRAIN.identity.model_dump(mode="json"), **changes}


def run(record: StageRecord = TRAIN, **changes: Any) -> StageRun:
    """Training as it came out here: as recorded, but for the changes."""
    said = {
        "name": record.identity.stage, "key": record.key, "digest": record.digest, "cached": False,
        "seconds": 0.0, "observed": {}, "fingerprint": record.fingerprint,
        "identity": record.identity.model_dump(mode="json"), **changes,
    }  # fmt: skip
    return StageRun.model_validate(said)


CODE, DISTRIBUTIONS = TRAIN.identity.code, TRAIN.identity.distributions
TRAINER = CODE["tasks.trainer"]
OTHER = "0" * 64
CHANGES: list[tuple[dict[str, Any], type[CannotReplayError], str]] = [
    ({"python": "3.9.1"}, ChangedEnvironmentError, "changed python: 3.11.7 -> 3.9.1"),
    ({"libc": "musl 1"}, ChangedEnvironmentError, "changed libc: glibc 2.36 -> musl 1"),
    ({"machine": "arm64"}, ChangedEnvironmentError, "changed machine: x86_64 -> arm64"),
    (
        {"distributions": {**DISTRIBUTIONS, "torch": "9.9"}},
        ChangedEnvironmentError,
        f"changed distribution of stage train: torch {DISTRIBUTIONS['torch']} -> 9.9 (1 in all)",
    ),
    (
        {"distributions": {n: v for n, v in DISTRIBUTIONS.items() if n != "torch"}},
        ChangedEnvironmentError,
        f"changed distribution of stage train: torch {DISTRIBUTIONS['torch']} -> absent",
    ),
    (
        {"code": {**CODE, "tasks.trainer": OTHER}},
        ChangedCodeError,
        f"changed code of stage train: tasks.trainer {TRAINER[:12]} -> {OTHER[:12]} (1 in all)",
    ),
    (
        # What other code stands on says nothing of the recorded one.
        {
            "code": {**CODE, "tasks.newer": OTHER},
            "distributions": {**DISTRIBUTIONS, "newer": "1.0"},
        },
        ChangedCodeError,
        f"changed code of stage train: tasks.newer absent -> {OTHER[:12]} (1 in all)",
    ),
    (
        {"code": {**CODE, "tasks.newer": OTHER}},
        ChangedCodeError,
        f"changed code of stage train: tasks.newer absent -> {OTHER[:12]} (1 in all)",
    ),
    (
        # The recorded code could be run; with other libraries it is not tried.
        {"code": {}, "distributions": {**DISTRIBUTIONS, "torch": "9.9"}},
        ChangedEnvironmentError,
        "-> 9.9 (1 in all)",
    ),
]


@pytest.mark.parametrize(("change", "kind", "said"), CHANGES)
def test_what_changed_is_named(
    change: dict[str, Any], kind: type[CannotReplayError], said: str
) -> None:
    check_identity(RECIPE, "train", identity())
    with pytest.raises(CannotReplayError) as raised:
        check_identity(RECIPE, "train", identity(**change))
    assert type(raised.value) is kind
    assert said in str(raised.value)


def test_another_numeric_platform_is_told_by_the_libraries_that_round_otherwise() -> None:
    assert other_numbers("train", TRAIN, TRAIN.fingerprint) is None
    found = other_numbers("train", TRAIN, {**TRAIN.fingerprint, "torch": OTHER, "numpy": OTHER})
    assert str(found).startswith("different numeric platform: numpy, torch give other bits here")
    assert "onnxruntime" in str(other_numbers("train", TRAIN, {}))
    # Cleaning computes nothing that could round.
    assert other_numbers("clean", RECIPE.stages["clean"], {}) is None


def test_the_first_cause_is_that_of_the_first_stage_that_differs() -> None:
    clean = run(RECIPE.stages["clean"])
    code = identity(code={**CODE, "tasks.trainer": OTHER})
    numbers = {**TRAIN.fingerprint, "torch": OTHER}

    same = compared("diabetes", 1, RECIPE, [clean, run(identity=code, fingerprint=numbers)])
    assert (same.verdict, same.first_difference, same.first_cause) == ("identical", None, None)
    assert same.stages[0].changed == ""
    assert same.stages[1].changed.startswith("different numeric platform: torch")

    for changes, cause in (
        ({"identity": code, "fingerprint": numbers}, "different numeric platform: torch"),
        ({"identity": code}, "changed code of stage train: tasks.trainer"),
        ({}, UNKNOWN_CAUSE),
    ):
        other = compared("diabetes", 1, RECIPE, [clean, run(digest=json_digest("x"), **changes)])
        assert (other.verdict, other.first_difference) == ("differs", "train")
        assert str(other.first_cause).startswith(cause)
