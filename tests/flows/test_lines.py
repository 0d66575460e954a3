"""The flow of one line, whose form shows the line's own values."""

import pytest

from flows import lines
from models import catalog
from models.spec import Line
from tests.flows.conftest import LINES

SECTIONS = ("model", "training", "gate", "budget")


def all_lines() -> list[str]:
    return [*catalog.lines(), "diabetes"]


@pytest.fixture(autouse=True)
def _with_the_third_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalog.SETTING, str(LINES))


@pytest.mark.parametrize("name", all_lines())
def test_a_form_that_comes_back_as_it_was_shown_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, asked = catalog.find(name), []

    def taken(line: str, **sections: object) -> None:
        asked.append(catalog.find(line).changed(**sections))  # type: ignore[arg-type]

    monkeypatch.setattr(lines.produce, "fn", taken)
    run = lines.produce_line(name)
    shown = {section: lines.form(getattr(line, section))() for section in SECTIONS}
    run.fn(**shown)
    run.fn()
    [same, untouched] = asked
    assert isinstance(same, Line)
    assert same == untouched == line
    assert same.model_dump_json() == line.model_dump_json()


def test_what_is_changed_in_a_form_is_all_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    line, asked = catalog.find("digits"), []
    monkeypatch.setattr(lines.produce, "fn", lambda _, **given: asked.append(given))
    training = lines.form(line.training)(epochs=3, augmentation=None)
    lines.produce_line("digits").fn(training=training)
    [given] = asked
    wanted = line.training.model_copy(update={"epochs": 3, "augmentation": None})
    assert line.changed(training=given["training"]).training == wanted


def test_a_form_is_bounded_as_the_line_is() -> None:
    properties = lines.form(catalog.find("digits").training).model_json_schema()["properties"]
    assert properties["epochs"]["default"] == 12
    assert properties["epochs"]["minimum"] == 1


def test_a_name_that_is_no_lines_is_no_flow() -> None:
    with pytest.raises(AttributeError, match="nothing-like-it"):
        getattr(lines, "nothing-like-it")
