import pytest

from models import catalog, cnn
from models.changes import UnknownSettingError, changed
from models.spec import Budget, Gate, Training

LINE = catalog.find("digits")


def test_no_change_is_no_section() -> None:
    assert changed(LINE, []) == {}


def test_a_change_touches_its_field_only() -> None:
    found = changed(LINE, ["training.epochs=3"])
    assert found == {"training": LINE.training.model_copy(update={"epochs": 3})}
    assert isinstance(found["training"], Training)


def test_changes_of_one_section_add_up_and_the_last_one_counts() -> None:
    changes = ["training.epochs=3", "training.optimizer.lr=0.5", "training.epochs=4"]
    training = changed(LINE, changes)["training"]
    assert (training.epochs, training.optimizer.lr) == (4, 0.5)
    assert training.optimizer.name == LINE.training.optimizer.name


@pytest.mark.parametrize(
    ("change", "section", "value"),
    [
        ("training.schedule.name=cosine", "training", ("schedule", "name", "cosine")),
        ("training.augmentation.degrees=5", "training", ("augmentation", "degrees", 5)),
        ("training.augmentation=null", "training", ("augmentation", None)),
        ("gate.floors.accuracy=0.5", "gate", ("floors", "accuracy", 0.5)),
        ("gate.floors.log_loss=2", "gate", ("floors", "log_loss", 2)),
        ("budget.size_mb=null", "budget", ("size_mb", None)),
    ],
)
def test_nested_and_empty_values(change: str, section: str, value: tuple[object, ...]) -> None:
    found = changed(LINE, [change])[section].model_dump()
    *path, expected = value
    for name in path:
        found = found[name]
    assert found == expected


def test_a_change_of_the_model_is_what_the_line_takes() -> None:
    found = changed(LINE, ["model.size=small"])
    assert LINE.changed(**found).model == cnn.Spec(size="small", dropout=LINE.model.dropout)  # type: ignore[attr-defined]


def test_sections_come_back_as_the_line_takes_them() -> None:
    found = changed(LINE, ["gate.margin=0.2", "budget.slowdown=2", "training.seed=7"])
    line = LINE.changed(**found)
    assert isinstance(line.gate, Gate)
    assert isinstance(line.budget, Budget)
    assert (line.gate.margin, line.budget.slowdown, line.training.seed) == (0.2, 2, 7)
    assert line.gate.floors == LINE.gate.floors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epoch=3", "there is no setting 'training.epoch'; there is epochs"),
        ("training.optimizer.speed=1", "there is no setting 'training.optimizer.speed'"),
        ("training.epochs.deeper=1", "there is no setting 'training.epochs.deeper'"),
        ("gate.floors.accuracy.deeper=1", "there is no setting 'gate.floors.accuracy.deeper'"),
        ("model.channels=3", "there is no setting 'model.channels'"),
        ("training.epochs", "expected section.field=value"),
        ("training=3", "expected section.field=value"),
        ("epochs=3", "expected section.field=value"),
        ("data.raw=x/", "expected section.field=value with a section of model, training"),
        ("=3", "expected section.field=value"),
        ("training.epochs=0", "epochs: Input should be greater than or equal to 1"),
        ("training.epochs=many", "epochs: Input should be a valid integer"),
        ("training.optimizer.lr=NaN", "optimizer.lr"),
        ("training.optimizer=3", "optimizer"),
        ("model.size=huge", "size: Input should be 'tiny', 'small', 'base'"),
    ],
)
def test_what_cannot_be_set_is_said(change: str, message: str) -> None:
    with pytest.raises(UnknownSettingError, match=message):
        changed(LINE, [change])
