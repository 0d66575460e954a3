import json

import pytest
from pydantic import ValidationError

from models import catalog, cnn, mlp
from models.objectives import Regression
from models.spec import Budget, Gate, Line, Optimizer, Schedule, Training

SHIPPED = catalog.lines()


@pytest.mark.parametrize("name", ["cifar", "digits", "fashion", "flights"])
def test_a_shipped_line_comes_back_from_json(name: str) -> None:
    line = SHIPPED[name]
    found = Line.model_validate_json(line.model_dump_json())
    assert found == line
    assert type(found.data) is type(line.data)
    assert type(found.model) is type(line.model)
    assert found.example is not None
    assert found.example.load is line.example.load  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "path",
    [(), ("data",), ("model",), ("training",), ("training", "optimizer"), ("objective", "primary")],
)
def test_an_unknown_field_anywhere_is_refused(path: tuple[str, ...]) -> None:
    fields = json.loads(SHIPPED["flights"].model_dump_json())
    inner = fields
    for name in path:
        inner = inner[name]
    inner["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        Line.model_validate(fields)


def test_a_family_cannot_pass_for_data() -> None:
    fields = json.loads(SHIPPED["digits"].model_dump_json())
    fields["data"] = fields["model"]
    with pytest.raises(ValidationError, match=r"models\.cnn:Spec is not a Data"):
        Line.model_validate(fields)


@pytest.mark.parametrize("target", ["row", "identity", "split"])
def test_our_own_columns_cannot_be_used(target: str) -> None:
    fields = dict(SHIPPED["flights"])
    fields["objective"] = Regression(target=target, unit="min")
    with pytest.raises(ValidationError, match=f"column {target} is ours"):
        Line(**fields)


@pytest.mark.parametrize("name", ["", "X", "a", "1st", "with space", "a/b", "a" * 42])
def test_a_line_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Line(**{**dict(SHIPPED["flights"]), "name": name})


def test_changed_settings_replace_those_of_the_line_and_no_others() -> None:
    line = SHIPPED["flights"]
    gate = Gate(floors={"rmse": 1.0})
    found = line.changed(model={"size": "tiny", "dropout": 0.5}, gate=gate)
    assert found.model == mlp.Spec(size="tiny", dropout=0.5)
    assert found.gate == line.gate.model_copy(update={"floors": {"rmse": 1.0}})
    assert (found.training, found.budget, found.data) == (line.training, line.budget, line.data)
    assert line.changed() == line


def test_a_model_change_keeps_the_other_fields_of_the_model() -> None:
    line = SHIPPED["digits"].model_copy(update={"model": cnn.Spec(size="small", dropout=0.4)})
    assert line.changed(model={"size": "tiny"}).model == cnn.Spec(size="tiny", dropout=0.4)


@pytest.mark.parametrize("model", [{"channels": 3}, {"size": "huge"}, {"dropout": 1}])
def test_a_model_setting_the_family_lacks_is_refused(model: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SHIPPED["digits"].changed(model=model)  # type: ignore[arg-type]


def test_the_device_is_settled_only_where_it_was_left_open() -> None:
    line = SHIPPED["digits"]
    assert line.training.device == "auto"
    assert line.on("cuda").training == line.training.model_copy(update={"device": "cuda"})
    settled = line.changed(training=Training(device="cpu"))
    assert settled.on("cuda") == settled


@pytest.mark.parametrize("name", ["digits", "flights"])
def test_an_example_lands_what_its_line_reads(name: str) -> None:
    line = SHIPPED[name]
    assert line.example is not None
    assert set(line.example.default) <= set(line.example.slices)
    landed = dict(line.example.load(line.example.slices[0]))
    assert set(line.data.references.values()) <= set(landed)
    tables = {
        reference: line.data.reference(reference, landed[place])
        for reference, place in line.data.references.items()
    }
    (raw,) = set(landed) - set(line.data.references.values())
    assert raw.endswith(line.data.suffixes)
    parsed = line.data.parse(raw, landed[raw], tables)
    assert parsed.rows.height >= 100
    assert {*line.data.kept, *line.data.identity, line.objective.target} <= set(parsed.rows.columns)


def test_a_section_that_names_one_field_leaves_the_others_as_the_line_has_them() -> None:
    line = SHIPPED["flights"]
    found = line.changed(
        gate=Gate(margin=0.02), training=Training.model_validate({"optimizer": {"lr": 0.5}})
    )
    assert found.gate.floors == line.gate.floors
    assert found.gate.margin == 0.02
    assert found.training.batch_size == line.training.batch_size
    assert found.training.optimizer.lr == 0.5
    assert found.training.optimizer.weight_decay == line.training.optimizer.weight_decay


def test_fields_that_are_sound_alone_but_not_together_are_refused() -> None:
    line = SHIPPED["flights"]
    cycling = line.changed(training=Training(schedule=Schedule(cycle_momentum=True)))
    assert cycling.training.schedule == Schedule(cycle_momentum=True)
    with pytest.raises(ValidationError, match="cycle_momentum belongs to onecycle, the schedule"):
        cycling.changed(training=Training(schedule=Schedule(name="cosine")))
    with pytest.raises(ValidationError, match="batch_size 512 cannot be cut into 3"):
        line.changed(training=Training.model_construct(accumulate=3))
    with pytest.raises(ValidationError, match="portable takes optimizer.implementation fused"):
        Training(profile="portable", optimizer=Optimizer(implementation="foreach"))
    assert Training(profile="fast", optimizer=Optimizer(implementation="foreach"))


def test_a_setting_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov needs sgd"):
        Optimizer(name="adamw", nesterov=True)
    assert Optimizer(name="sgd", nesterov=True)
    with pytest.raises(ValueError, match="label_smoothing: a number has no classes"):
        SHIPPED["flights"].changed(training=Training(label_smoothing=0.1))
    assert SHIPPED["digits"].changed(training=Training(label_smoothing=0.1))
    with pytest.raises(ValidationError, match="exclude"):
        Budget.model_validate({"exclude": ["int8-statik"]})
    assert Budget(exclude=("int8-static", "fp32"))
