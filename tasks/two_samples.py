"""Do two samples of rows come from one distribution? Feature by feature, and all features at once.

The p-values of all tests of a search are one family, adjusted by Benjamini and Yekutieli (2001),
which holds however features depend on each other: where nothing drifted, the chance that anything
is called drift is at most the rate that was asked for. tests/tasks/test_two_samples.py counts it.

Every difference is a lower bound of the total variation of the two distributions, between 0 and 1:
a share of the rows that one of them would have to exchange. So one margin fits all tests.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.open import Frozen

SMALLEST_EXPECTED = 5
"""Cochran (1954): expected counts below it make chi-square too sure; rarer values are pooled."""
CLASSIFIED = 4000
"""Rows of each sample a classifier is fitted to and tried on: what more would show is small."""


class Found(NamedTuple):
    """One test: how far apart, and how likely so far by chance."""

    name: str
    test: str
    difference: float
    p: float


class Finding(Frozen):
    """One test of a search, its p-value adjusted for all of them."""

    sample: str
    name: str
    test: str
    difference: float
    p: float
    adjusted: float
    drifted: bool


def search(
    samples: Mapping[str, Sequence[Found]], false_alarms: float, margin: float
) -> list[Finding]:
    """Findings of all samples' tests, the surest first.

    Drift is what is shown at the rate of false alarms and differs by the margin or more.
    """
    from scipy.stats import false_discovery_control

    flat = [(sample, found) for sample, tests in samples.items() for found in tests]
    if not flat:
        return []
    adjusted = false_discovery_control([found.p for _, found in flat], method="by")
    findings = [
        Finding(
            sample=sample,
            **found._asdict(),
            adjusted=float(p),
            drifted=bool(p <= false_alarms and found.difference >= margin),
        )
        for (sample, found), p in zip(flat, adjusted, strict=True)
    ]
    return sorted(findings, key=lambda f: (f.p, -f.difference, f.sample, f.name))


def each_column(a: pl.DataFrame, b: pl.DataFrame, prefix: str = "") -> Iterator[Found]:
    """A test of every Float and String column, and of the nulls of a Float column that has some."""
    for column in a.iter_columns():
        name, one, other = f"{prefix}{column.name}", column, b.get_column(column.name)
        if column.dtype == pl.String:
            yield categories(name, one, other)
        elif column.dtype.is_float():
            yield numbers(name, one, other)
            if one.null_count() or other.null_count():
                nulls = (s.is_null().cast(pl.String) for s in (one, other))
                yield categories(f"{name} is missing", *nulls)


def numbers(name: str, a: pl.Series, b: pl.Series) -> Found:
    """Kolmogorov and Smirnov's test of the values that are there; a tie makes it less sure."""
    from scipy.stats import ks_2samp

    one, other = (s.drop_nulls().to_numpy() for s in (a, b))
    test = "Kolmogorov-Smirnov"
    if not (len(one) and len(other)):
        return Found(name, test, 0.0, 1.0)
    found = ks_2samp(one, other, method="asymp")
    return Found(name, test, float(found.statistic), float(found.pvalue))


def categories(name: str, a: pl.Series, b: pl.Series) -> Found:
    """Pearson's chi-square test of how often each value comes; the rarest count as one."""
    table = _counts(a, b)
    return shares(name, table)


def shares(name: str, table: NDArray[np.int64]) -> Found:
    """Pearson's chi-square test of counts [2, k] of the same k kinds."""
    from scipy.stats import chi2_contingency

    totals = table.sum(axis=1)
    expected = table.sum(axis=0) * totals.min() / max(1, table.sum())
    rare = expected < SMALLEST_EXPECTED
    if rare.any():
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
        if table.shape[1] > 1 and expected[rare].sum() < SMALLEST_EXPECTED:
            least = int(table[:, :-1].sum(axis=0).argmin())
            table[:, least] += table[:, -1]
            table = table[:, :-1]
    if table.shape[1] < 2 or not totals.all():
        return Found(name, "chi-square", 0.0, 1.0)
    one, other = table / totals[:, None]
    p = chi2_contingency(table, correction=False).pvalue
    return Found(name, "chi-square", float(np.abs(one - other).sum() / 2), float(p))


def _counts(a: pl.Series, b: pl.Series) -> NDArray[np.int64]:
    """Counts [2, k] of every value of either, null included, in the order of the values."""
    both = [s.alias("value").value_counts(name="count") for s in (a, b)]
    joined = both[0].join(both[1], "value", how="full", coalesce=True, nulls_equal=True)
    return joined.sort("value").drop("value").fill_null(0).to_numpy().T.astype(np.int64)


def together(name: str, a: pl.DataFrame, b: pl.DataFrame) -> Found:
    """Can a classifier tell the samples apart on rows it has not seen (Lopez-Paz, Oquab 2017)?

    Gradient-boosted trees are fitted to one half and tried on the other, where the Mann-Whitney
    test of their scores is exact whatever they learned. The difference is 2 AUC - 1.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.ensemble import HistGradientBoostingClassifier

    random = np.random.default_rng(0)
    table = pl.concat([_some(a, random), _some(b, random)])
    values = _matrix(table)
    labels = np.repeat([0, 1], [min(len(one), CLASSIFIED) for one in (a, b)])
    fitted = _halves(labels, random)
    # The trees take a null, but no column without a single value.
    values = values[:, ~np.isnan(values[fitted]).all(axis=0)]
    if not values.shape[1]:
        return Found(name, "classifier", 0.0, 1.0)
    model = HistGradientBoostingClassifier(max_iter=50, early_stopping=False, random_state=0)
    model.fit(values[fitted], labels[fitted])
    scores = model.predict_proba(values[~fitted])[:, 1]
    old, new = (scores[labels[~fitted] == label] for label in (0, 1))
    found = mannwhitneyu(new, old, alternative="greater", method="asymptotic")
    auc = float(found.statistic) / (len(old) * len(new))
    return Found(name, "classifier", max(0.0, 2 * auc - 1), float(found.pvalue))


def _some(rows: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    return rows[random.permutation(rows.height)[:CLASSIFIED]]


def _halves(labels: NDArray[Any], random: np.random.Generator) -> NDArray[np.bool_]:
    """Which rows to fit, bool [n]: a random half of each sample."""
    fitted = np.zeros(len(labels), np.bool_)
    for label in (0, 1):
        places = random.permutation(np.flatnonzero(labels == label))
        fitted[places[: len(places) // 2]] = True
    return fitted


def _matrix(table: pl.DataFrame) -> NDArray[np.float64]:
    """Float64 [n, columns]: a text becomes the number of rows that have it, a null NaN."""
    columns = [
        pl.len().over(c.name).cast(pl.Float64).alias(c.name) if c.dtype == pl.String
        else pl.col(c.name).cast(pl.Float64).fill_null(float("nan"))
        for c in table.iter_columns()
    ]  # fmt: skip
    return table.select(columns).to_numpy()
