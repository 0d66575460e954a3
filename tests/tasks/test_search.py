import pytest

from models import catalog
from models.changes import UnknownSettingError
from models.digests import json_digest
from models.space import Choice, Range, Space, of_line
from models.spec import Training
from tasks.search import Record, Suggestions, Trial

LINE = catalog.find("digits")
SPACE: Space = {
    "training.optimizer.lr": Range(low=1e-4, high=1e-1, log=True),
    "training.epochs": Range(low=2, high=20, whole=True),
    "model.size": Choice(values=("tiny", "small", "base")),
}


def search(seed: int, batch: int, rounds: int) -> list[Trial]:
    """A search whose metric falls with the distance of the learning rate to 0.01."""
    suggestions = Suggestions(LINE, SPACE, seed)
    found: list[Trial] = []
    for _ in range(rounds):
        told = [
            trial.model_copy(update={"value": None if trial.number == 1 else -_distance(trial)})
            for trial in suggestions.ask(batch)
        ]
        suggestions.tell(told)
        found += told
    return found


def _distance(trial: Trial) -> float:
    rate = trial.settings["training.optimizer.lr"]
    assert isinstance(rate, float)
    return abs(rate - 0.01)


def test_a_search_is_a_function_of_its_seed_and_its_batches() -> None:
    assert search(0, 4, 6) == search(0, 4, 6)
    assert search(0, 4, 6) != search(1, 4, 6)
    assert search(0, 4, 6) != search(0, 2, 12)


def test_the_first_trial_is_the_line_itself_and_later_ones_are_better() -> None:
    trials = search(0, 4, 15)
    own = LINE.training
    assert trials[0].settings == {
        "training.optimizer.lr": own.optimizer.lr, "training.epochs": own.epochs,
        "model.size": "base",
    }  # fmt: skip
    early, late = (min(map(_distance, part)) for part in (trials[:8], trials[8:]))
    assert late < early
    sizes = [sum(map(_distance, part)) for part in (trials[1:21], trials[-20:])]
    assert sizes[1] < sizes[0], "what was told is not learnt from"


def test_a_trial_is_the_line_with_its_words_set() -> None:
    trial = search(0, 2, 1)[1]
    changed = trial.line(LINE)
    assert changed.training.optimizer.lr == trial.settings["training.optimizer.lr"]
    assert changed.training.epochs == trial.settings["training.epochs"]
    assert changed.model.model_dump()["size"] == trial.settings["model.size"]
    assert changed.training.augmentation == LINE.training.augmentation
    with pytest.raises(UnknownSettingError, match=r"training\.speed"):
        Trial(number=0, settings={"training.speed": 1}).line(LINE)


def record(*trials: Trial) -> Record:
    return Record(
        line="digits", dataset=json_digest("x"), metric=LINE.objective.primary, seed=0, parallel=1,
        space=of_line(LINE), trials=trials,
    )  # fmt: skip


def test_the_best_is_the_first_of_equals_and_failures_do_not_count() -> None:
    def trial(number: int, value: float | None) -> Trial:
        return Trial(number=number, settings={}, value=value, error="" if value else "the loss")

    assert record(trial(0, 0.5), trial(1, 0.9), trial(2, 0.9), trial(3, None)).best.number == 1
    with pytest.raises(ValueError, match="no trial of digits could be trained: the loss"):
        _ = record(trial(0, None)).best


def test_the_lines_own_settings_are_tried_as_they_are() -> None:
    own = LINE.training.optimizer.model_copy(update={"lr": 0.0012345678})
    line = LINE.model_copy(update={"training": LINE.training.model_copy(update={"optimizer": own})})
    first, second = Suggestions(line, SPACE, 0).ask(2)
    assert first.settings["training.optimizer.lr"] == 0.0012345678
    assert len(str(second.settings["training.optimizer.lr"]).lstrip("0.")) <= 5


def test_settings_that_do_not_go_together_are_a_failed_trial() -> None:
    from flows.search import _trained

    line = LINE.changed(training=Training(accumulate=2))
    trial = Trial(number=1, settings={"training.batch_size": 169})
    found = _trained(line, trial, None)  # type: ignore[arg-type]
    assert "batch_size 169 cannot be cut into 2" in found.error
    assert found.value is None
    flights = catalog.find("flights")
    trial = Trial(number=1, settings={"training.label_smoothing": 0.05})
    found = _trained(flights, trial, None)  # type: ignore[arg-type]
    assert "a number has no classes" in found.error
