"""The error rates of the gate's tests, counted over 1,000 draws of test rows each.

Draws come from a fixed seed, so a count is always the same. A rate of 5% gives more than 66 of
1,000 in one of a hundred experiments.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models import catalog
from models.objectives import Classification, Objective, Primary, Regression
from tasks.paired import compare, compare_slice, found_worse, mcnemar, shown_no_worse
from tasks.refs import Difference, Interval

LINES = catalog.lines()
DRAWS, ROWS, CONFIDENCE = 1000, 200, 0.95
MOST = 66
REGRESSION: Objective = Regression(target="t", unit="1")
CLASSES: Objective = Classification(target="t", labels=("a", "b"))


def errors(random: np.random.Generator, rows: int, worse: float) -> Iterator[dict[str, Any]]:
    """Losses of two regressions that share half of their error; the RMSE of the first is more."""
    shared, *own = (random.normal(size=rows) for _ in range(3))
    for mine, scale in zip(own, (1 + worse, 1.0), strict=True):
        error = scale * (shared + mine)
        yield {"squared": error**2, "absolute": np.abs(error)}


def labels(random: np.random.Generator, rows: int, worse: float) -> Iterator[dict[str, Any]]:
    """Losses of two classifiers right on 90% of the rows, the first on as many less."""
    hard = random.random(rows) < 0.2
    for share in (0.5 - worse * 4.5, 0.5):
        yield {"correct": np.where(hard, random.random(rows) < share, True).astype(np.float64)}


def judge(losses: Iterator[dict[str, Any]], objective: Objective) -> Difference:
    challenger, champion = losses
    if objective is CLASSES:
        for found in (challenger, champion):
            found["log_loss"] = np.where(found["correct"] > 0, 0.1, 2.0)
    return compare(objective, challenger, champion, CONFIDENCE)


@cache
def drawn(kind: Any, objective: Objective, worse: float) -> list[Difference]:
    random = np.random.default_rng(0)
    return [judge(kind(random, ROWS, worse), objective) for _ in range(DRAWS)]


def count(verdicts: Any) -> int:
    return sum(bool(verdict) for verdict in verdicts)


# Deviation of the relative difference over draws of equal models: of two RMSE with correlation 1/2
# of their errors; of two accuracies of 90% that differ on a tenth of the rows.
KINDS = [
    pytest.param(errors, REGRESSION, np.sqrt(0.75 / ROWS), id="metric"),
    pytest.param(labels, CLASSES, np.sqrt(0.1 / ROWS) / 0.9, id="labels"),
]
# Quantiles of the normal distribution at 95% and at 90%.
POWER = 1.645 + 1.282


@pytest.mark.parametrize(("kind", "objective", "deviation"), KINDS)
def test_an_equal_challenger_is_called_neither_worse_nor_better(
    kind: Any, objective: Objective, deviation: float
) -> None:
    found = drawn(kind, objective, 0.0)
    assert count(found_worse(d, 0.0, CONFIDENCE) for d in found) <= MOST
    # Better would be: its whole interval below zero.
    assert count(d.worse_by.high < 0 for d in found) <= MOST
    # Beyond a margin hardly ever, and with rows enough for the margin it is shown to be no worse.
    assert count(found_worse(d, 2 * deviation, CONFIDENCE) for d in found) <= 2
    assert count(shown_no_worse(d, POWER * deviation) for d in found) >= 850


@pytest.mark.parametrize(("kind", "objective", "deviation"), KINDS)
def test_a_challenger_worse_by_the_margin_passes_at_the_stated_rates(
    kind: Any, objective: Objective, deviation: float
) -> None:
    loss = POWER * deviation + 0.005
    found = drawn(kind, objective, loss)
    # Non-inferiority: worse by exactly the margin passes in 5%.
    assert count(shown_no_worse(d, loss) for d in found) <= MOST
    # It is not more than the margin worse: that is said in 5%.
    assert count(found_worse(d, loss, CONFIDENCE) for d in found) <= MOST
    # Worse by the margin and what so many rows can show: held in 90%, were the deviation that of
    # equal models; a worse one's is larger.
    assert count(found_worse(d, 0.005, CONFIDENCE) for d in found) >= 800


@pytest.mark.slow
@pytest.mark.parametrize("slices", [8])
def test_equal_slices_raise_a_false_alarm_as_rarely_as_one_test(slices: int) -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(DRAWS):
        pairs = [tuple(errors(random, 60, 0.0)) for _ in range(slices)]
        found = [compare_slice(REGRESSION, a, b, CONFIDENCE, slices) for a, b in pairs]
        alarms += any(found_worse(d, 0.0, CONFIDENCE, slices) for d in found)
    assert alarms <= MOST


@pytest.mark.slow
def test_a_class_that_breaks_is_held_at_the_margin_of_the_lines_and_equal_ones_are_not() -> None:
    """One of ten: equal ones of 100 test rows, as digits has; worse by a tenth of 1,000."""
    margins = {line.gate.slices["label"] for line in LINES.values() if "label" in line.gate.slices}
    assert margins == {0.05}
    random = np.random.default_rng(2)

    def alarm(rows: int, worse: float) -> bool:
        pair = tuple(labels(random, rows, worse))
        for losses in pair:
            losses["log_loss"] = 1 - losses["correct"]
        found = compare_slice(CLASSES, *pair, CONFIDENCE, 10)
        return found_worse(found, 0.05, CONFIDENCE, 10)

    assert count(any(alarm(100, 0.0) for _ in range(10)) for _ in range(DRAWS)) <= 2
    assert count(alarm(1000, 0.1) for _ in range(DRAWS)) >= 950


# Standard error of the relative difference between two seeds of a line, on its test rows.
MEASURED = {"fashion": 0.0024, "flights": 0.0016}


@pytest.mark.parametrize("name", [n for n, line in LINES.items() if line.gate.noninferior])
def test_a_line_demands_proof_only_where_its_rows_can_give_it(name: str) -> None:
    margin = LINES[name].gate.margin / MEASURED[name]
    assert margin > POWER
    for kind in KINDS:
        draw, objective, deviation = kind.values
        equal = drawn(draw, objective, 0.0)
        assert count(shown_no_worse(d, margin * float(deviation)) for d in equal) >= 950


def correct(*values: int) -> dict[str, NDArray[np.float64]]:
    return {"correct": np.array(values, np.float64), "log_loss": np.zeros(len(values))}


def test_mcnemar_is_the_mid_p_value_of_the_rows_on_which_two_differ() -> None:
    right, wrong = correct(1, 1, 1, 1, 1, 0), correct(0, 0, 0, 1, 1, 0)
    # Three differ, all lost: (1/2)^3, counted half.
    assert mcnemar(wrong, right) == pytest.approx(1 / 16)
    assert mcnemar(right, wrong) == pytest.approx(15 / 16)
    assert mcnemar(right, right) == 0.5
    assert mcnemar({"squared": np.ones(3)}, {"squared": np.ones(3)}) is None


def test_three_lost_labels_are_no_proof_though_resampling_says_so() -> None:
    right = correct(*[1] * 40)
    wrong = correct(*[1] * 37, 0, 0, 0)
    found = compare(CLASSES, wrong, right, CONFIDENCE)
    assert found.worse_by.low > 0
    assert not found_worse(found, 0.0, CONFIDENCE)


def test_too_few_labels_show_nothing() -> None:
    same = correct(*[1] * 40)
    found = compare(CLASSES, same, same, CONFIDENCE)
    assert found.worse_by == Interval(value=0.0, low=0.0, high=0.0)
    assert not shown_no_worse(found, 0.05)
    assert shown_no_worse(found, 0.10)


def test_equal_labels_are_no_excuse_for_a_log_loss_that_got_worse() -> None:
    by_loss = CLASSES.model_copy(update={"primary": Primary(name="log_loss", better="lower")})
    random = np.random.default_rng(3)
    right = (random.random(ROWS) < 0.9).astype(np.float64)
    nats = random.uniform(0.1, 0.5, ROWS)
    worse, better = ({"correct": right, "log_loss": scale * nats} for scale in (2.0, 1.0))
    for found in (
        compare(by_loss, worse, better, CONFIDENCE),
        compare_slice(by_loss, worse, better, CONFIDENCE, 3),
    ):
        assert found.mcnemar is None
        assert found.worse_by.value == pytest.approx(1.0)
        assert found_worse(found, 0.01, CONFIDENCE)
    assert shown_no_worse(compare(by_loss, better, worse, CONFIDENCE), 0.001)
    assert compare(CLASSES, worse, better, CONFIDENCE).mcnemar == 0.5
