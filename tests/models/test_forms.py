import re

import pytest
from pydantic import TypeAdapter, ValidationError

from models import catalog, cnn
from models.forms import Form, parts
from models.lines import verses
from models.spec import Budget, Line, student

LINE = catalog.find("digits")


@pytest.mark.parametrize(
    ("name", "network", "quantizer", "share", "size"),
    [
        ("int8-static", None, "int8-static", None, None),
        ("pruned-50", "pruned-50", None, 0.5, None),
        ("student-small", "student-small", None, None, "small"),
        ("pruned-25+int8-dynamic", "pruned-25", "int8-dynamic", 0.25, None),
        ("fp16", None, "fp16", None, None),
        ("student-tiny+int4-weights", "student-tiny", "int4-weights", None, "tiny"),
    ],
)
def test_a_name_says_what_a_form_consists_of(
    name: str, network: str | None, quantizer: str | None, share: float | None, size: str | None
) -> None:
    found = parts(name)
    assert (found.network, found.quantizer, found.share, found.size) == (
        network, quantizer, share, size,
    )  # fmt: skip
    assert TypeAdapter(Form).validate_python(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "fp32", "bf16", "int9", "pruned-0", "pruned-5", "pruned-100", "pruned", "student-",
     "student-X", "int8-static+pruned-50", "pruned-50+", "pruned-50+pruned-25",
     "pruned-50+int8-static ", "pruned-50\nint8-static"],
)  # fmt: skip
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no form of compression"):
        parts(name)
    with pytest.raises(ValidationError, match="candidates"):
        Budget(candidates=(name,))


def test_a_student_of_a_size_the_family_lacks_is_refused_with_the_line() -> None:
    budget = Budget(candidates=("student-huge",))
    with pytest.raises(ValueError, match=r"student-huge: models\.cnn has no such size; there are"):
        Line(**{**dict(LINE), "budget": budget})
    with pytest.raises(ValueError, match="student-huge"):
        LINE.changed(budget=budget)


@pytest.mark.parametrize("form", ["student-tiny", "pruned-50", "student-tiny+int8-dynamic"])
def test_a_network_that_carries_a_state_is_not_retrained(form: str) -> None:
    budget = Budget(candidates=(form,))
    with pytest.raises(ValueError, match=f"{re.escape(form)}: a network that carries a state"):
        verses.line.changed(budget=budget)
    assert verses.line.changed(budget=Budget(candidates=("int8-dynamic",))).budget.candidates


def test_a_student_differs_in_size_alone() -> None:
    assert student(cnn.Spec(size="base", dropout=0.5), "tiny") == cnn.Spec(size="tiny", dropout=0.5)


def test_a_budget_that_was_recorded_before_there_were_students_means_the_same() -> None:
    recorded = Budget().model_dump(mode="json", exclude={"retraining", "exhaustive"})
    assert Budget.model_validate(recorded) == Budget()
    assert Budget().candidates == ("int8-dynamic", "int8-static", "int8-weights")
    assert not Budget().trains
