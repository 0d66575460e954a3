"""Two models scored on the same rows: is one worse, by how much, and how sure can one be?

The rows are resampled in pairs, so what makes a row hard counts on both sides and cancels. Where
accuracy decides, McNemar's test has to agree: with a handful of rows on which the two differ,
resampling is too sure of itself. tests/tasks/test_paired.py states the error rates and counts them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.objectives import Floats, Objective
from tasks.evaluate import bootstrapped
from tasks.refs import Difference, Interval

# Efron, Tibshirani (1993), section 6.4: a standard error needs no more.
RESAMPLES_FOR_ERROR = 200
# Hanley, Lippman-Hand (1983): an event not seen in n rows may still have a rate of 3/n.
RULE_OF_THREE = 3


def compare(
    objective: Objective, challenger: Mapping[str, Floats], champion: Mapping[str, Floats],
    confidence: float,
) -> Difference:  # fmt: skip
    """How much worse the challenger is, from per-row losses [n] of both on the same rows.

    The ends of the interval are one-sided bounds, each at the confidence: percentiles of the paired
    bootstrap (Efron 1979).
    """
    worse, samples = _statistic(objective, challenger, champion)
    value, low, high = float(worse(*samples)), 0.0, 0.0
    if not _equal(challenger, champion):
        found = bootstrapped(worse, samples, 2 * confidence - 1).confidence_interval
        low, high = float(found.low), float(found.high)
    return _difference(objective, challenger, champion, Interval(value=value, low=low, high=high))


def compare_slice(
    objective: Objective, challenger: Mapping[str, Floats], champion: Mapping[str, Floats],
    confidence: float, slices: int,
) -> Difference:  # fmt: skip
    """The same for one of several slices, which share the chance of a false alarm (Bonferroni).

    So far out in the tail percentiles of resamples say nothing: the bounds are a normal quantile
    of the bootstrap's standard error (Efron, Tibshirani 1993, chapter 12).
    """
    from scipy.stats import norm

    worse, samples = _statistic(objective, challenger, champion)
    value, error = float(worse(*samples)), 0.0
    if not _equal(challenger, champion):
        found = bootstrapped(worse, samples, confidence, RESAMPLES_FOR_ERROR)
        error = float(found.standard_error)
    reach = float(norm.isf((1 - confidence) / slices)) * error
    interval = Interval(value=value, low=value - reach, high=value + reach)
    return _difference(objective, challenger, champion, interval)


def found_worse(found: Difference, margin: float, confidence: float, slices: int = 1) -> bool:
    """Whether it is shown to be worse by more than the margin.

    An equal one is called worse at most once in 1 / (1 - confidence) times.
    """
    agreed = found.mcnemar is None or found.mcnemar <= (1 - confidence) / slices
    return agreed and found.worse_by.low > margin


def shown_no_worse(found: Difference, margin: float) -> bool:
    """Whether it is shown to be less than the margin worse: the test of non-inferiority.

    One that is worse by the margin passes at most once in 1 / (1 - confidence) times. Too few
    labels show nothing: none of them may differ by chance.
    """
    enough = found.mcnemar is None or found.rows * margin >= RULE_OF_THREE
    return enough and found.worse_by.high <= margin


def mcnemar(challenger: Mapping[str, Floats], champion: Mapping[str, Floats]) -> float | None:
    """One-sided mid-p value of McNemar's test (1947) that the challenger's labels are no worse.

    Of the rows only one of the two has right, half should be the challenger's. Mid-p: see
    Fagerland, Lydersen, Laake (2013). None where losses are no labels.
    """
    from scipy.stats import binom

    if "correct" not in challenger:
        return None
    difference = champion["correct"] - challenger["correct"]
    lost, differing = np.count_nonzero(difference > 0), np.count_nonzero(difference)
    return float(binom.sf(lost, differing, 0.5) + binom.pmf(lost, differing, 0.5) / 2)


def _statistic(
    objective: Objective, challenger: Mapping[str, Floats], champion: Mapping[str, Floats]
) -> tuple[Any, tuple[Floats, ...]]:
    """How much worse, as a function of samples [..., n], and the samples it takes."""
    names, primary = list(challenger), objective.primary

    def worse(*samples: Floats, axis: int = -1) -> NDArray[Any]:
        del axis
        mine = dict(zip(names, samples[: len(names)], strict=True))
        others = dict(zip(names, samples[len(names) :], strict=True))
        value = objective.metrics(mine)[primary.name]
        reference = objective.metrics(others)[primary.name]
        sign = -1.0 if primary.better == "higher" else 1.0
        scale = np.maximum(np.abs(reference), 1e-12)
        difference: NDArray[Any] = sign * (value - reference) / scale
        return difference

    return worse, (*challenger.values(), *(champion[name] for name in names))


def _equal(challenger: Mapping[str, Floats], champion: Mapping[str, Floats]) -> bool:
    return all(np.array_equal(values, champion[name]) for name, values in challenger.items())


def _difference(
    objective: Objective, challenger: Mapping[str, Floats], champion: Mapping[str, Floats],
    worse_by: Interval,
) -> Difference:  # fmt: skip
    count = len(next(iter(challenger.values())))
    # Equal labels say nothing of another metric, such as a log loss.
    of_labels = objective.primary.name == "accuracy"
    found = mcnemar(challenger, champion) if of_labels else None
    return Difference(worse_by=worse_by, mcnemar=found, rows=count)
