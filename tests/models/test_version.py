"""A recipe is typed, canonical and closed: what it does not know it refuses."""

import pytest
from pydantic import ValidationError

from models.digests import json_digest
from models.version import Recipe, StageIdentity, StageRecord

IDENTITY = StageIdentity(
    stage="train",
    arguments={"epochs": 3},
    code={"tasks.trainer": "1" * 64},
    distributions={"torch": "2.13.0"},
    python="3.11.7",
    libc="glibc 2.36",
    machine="x86_64",
)
RECORD = StageRecord(
    identity=IDENTITY, key=json_digest(IDENTITY.model_dump(mode="json")), digest="2" * 64
)
RECIPE = Recipe(
    line="digits", snapshot="3" * 64, settings={"a": 1}, stages={"train": RECORD}, artifact="4" * 64
)


def test_the_digest_rule_is_the_one_of_this_kind() -> None:
    """Written down: to change this digest is to change the rule, which takes another kind."""
    assert RECIPE.kind == "modelmint.version/2"
    assert RECIPE.digest == "b0e6afc77256f910923c3ab534d878d5a4016024e649f4fd00c5226f10403dd3"
    assert Recipe.model_validate_json(RECIPE.model_dump_json()).digest == RECIPE.digest


@pytest.mark.parametrize(
    "change",
    [
        {"line": "other"},
        {"snapshot": "0" * 64},
        {"settings": {"a": 2}},
        {"artifact": "0" * 64},
        {"stages": {"train": RECORD.model_copy(update={"digest": "0" * 64})}},
        {"stages": {"train": RECORD.model_copy(update={"fingerprint": {"torch": "0" * 64}})}},
    ],
)
def test_everything_in_it_decides_the_digest(change: dict[str, object]) -> None:
    assert RECIPE.model_copy(update=change).digest != RECIPE.digest


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"kind": "modelmint.version/3"}, {"snapshot": "short"}, {"stages": {"a": {}}}],
)
def test_an_unknown_field_kind_or_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({**RECIPE.model_dump(mode="json"), **change})


def test_a_stage_key_that_is_not_its_identitys_digest_is_refused() -> None:
    with pytest.raises(ValidationError, match="not its identity's digest"):
        StageRecord(identity=IDENTITY, key="0" * 64, digest="2" * 64)
