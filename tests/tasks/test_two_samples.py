"""How often drift is found where there is none, counted over draws, and where there is some.

Draws come from a fixed seed, so a count is always the same. A rate of 5% gives more than 24 of 300,
and more than 7 of 60 or 3 of 15, in one of a hundred experiments.
"""

import numpy as np
import polars as pl
import pytest
from scipy.stats import ks_2samp

from tasks.two_samples import Found, each_column, numbers, search, shares, together

DRAWS, RATE, MOST = 300, 0.05, 24
FEW = [(15, 3), pytest.param(60, 7, marks=pytest.mark.slow)]


def rows(random: np.random.Generator, count: int, moved: float = 0.0) -> pl.DataFrame:
    """Features as lines have them: correlated, skewed, with nulls, with ties, with rare texts."""
    shared = random.normal(size=count)
    columns = {
        f"n{i}": shared + random.normal(size=count) * (i + 1) + moved * (i == 0) for i in range(4)
    }
    columns |= {"skewed": np.exp(shared), "counted": np.floor(np.abs(3 * shared))}
    often = np.array([40, 30, 15, 8, 4, 1, 1, 1]) / 100
    texts = {name: random.choice(list("abcdefgh"), size=count, p=often) for name in ("t1", "t2")}
    table = pl.DataFrame(columns | texts)
    missing = pl.Series(random.random(count) < 0.1)
    return table.with_columns(n1=pl.when(missing).then(None).otherwise(pl.col("n1")))


def alarm(tests: list[Found]) -> bool:
    return any(finding.drifted for finding in search({"fresh": tests}, RATE, 0.0))


@pytest.mark.parametrize("counts", [(1000, 200), (300, 300)])
def test_without_drift_a_search_is_alarmed_no_more_often_than_it_says(
    counts: tuple[int, int],
) -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(DRAWS):
        old, new = (rows(random, count) for count in counts)
        alarms += alarm(list(each_column(old, new)))
    assert alarms <= MOST


@pytest.mark.parametrize(("draws", "most"), FEW)
def test_a_classifier_sees_no_difference_where_there_is_none(draws: int, most: int) -> None:
    random = np.random.default_rng(2)
    found = [together("all", rows(random, 400), rows(random, 300)).p for _ in range(draws)]
    assert sum(p <= RATE for p in found) <= most
    # Uniform, so that the rate holds at every other level too.
    uniform = ks_2samp(found, (np.arange(1000) + 0.5) / 1000)
    assert uniform.pvalue > 0.01


def test_two_samples_are_one_family() -> None:
    random = np.random.default_rng(3)
    old = rows(random, 500)
    tests = {name: list(each_column(old, rows(random, 500))) for name in ("fresh", "captured")}
    findings = search(tests, RATE, 0.0)
    assert len(findings) == sum(map(len, tests.values()))
    assert all(f.adjusted >= f.p for f in findings)
    assert [f.p for f in findings] == sorted(f.p for f in findings)


def test_a_moved_feature_is_found_and_named() -> None:
    random = np.random.default_rng(4)
    old, new = rows(random, 2000), rows(random, 1000, moved=0.5)
    findings = search({"fresh": list(each_column(old, new))}, 0.01, 0.05)
    assert [f.name for f in findings if f.drifted] == ["n0"]
    assert findings[0].difference > 0.1


def test_what_is_sure_but_small_is_no_drift() -> None:
    random = np.random.default_rng(5)
    old, new = (pl.Series(random.normal(size=100_000) + by) for by in (0.0, 0.05))
    [finding] = search({"fresh": [numbers("n", old, new)]}, 0.01, 0.05)
    assert finding.adjusted < 1e-6
    assert not finding.drifted
    [same] = search({"fresh": [numbers("n", old, new)]}, 0.01, 0.01)
    assert same.drifted


def test_what_no_feature_shows_alone_is_seen_by_a_classifier() -> None:
    random = np.random.default_rng(6)

    def pair(sign: int) -> pl.DataFrame:
        a = random.normal(size=1000)
        return pl.DataFrame({"a": a, "b": sign * a + 0.3 * random.normal(size=1000)})

    old, new = pair(1), pair(-1)
    assert not alarm(list(each_column(old, new)))
    found = together("all", old, new)
    assert found.p < 1e-6
    assert found.difference > 0.8


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (["a"] * 50 + ["b"] * 50, ["a"] * 80 + ["b"] * 20, "t"),
        (["a"] * 100, ["a"] * 60 + ["new"] * 40, "t"),
        ([1.0] * 100, [1.0] * 60 + [None] * 40, "t is missing"),
    ],
)
def test_shares_values_and_nulls_that_change_are_found(
    old: list[str], new: list[str], name: str
) -> None:
    tables = (pl.DataFrame({"t": values}) for values in (old, new))
    found = {f.name: f for f in each_column(*tables)}
    assert found[name].p < 1e-4
    assert found[name].difference == pytest.approx(0.3 if len(set(new)) == len(set(old)) else 0.4)


def test_rare_values_are_pooled_and_nothing_to_compare_is_no_drift() -> None:
    # A value seen once in a hundred rows: chi-square alone would be far too sure of it.
    assert shares("t", np.array([[1000, 0], [99, 1]])).p == 1.0
    assert shares("t", np.array([[5, 5], [0, 0]])) == Found("t", "chi-square", 0.0, 1.0)
    empty = pl.Series([None, None], dtype=pl.Float64)
    assert numbers("n", empty, pl.Series([1.0, 2.0])).p == 1.0
    assert search({}, RATE, 0.0) == []
    constant = pl.DataFrame({"x": [1.0] * 100, "none": pl.Series([None] * 100, dtype=pl.Float64)})
    for columns in (["x", "none"], ["none"]):
        table = constant.select(columns)
        assert together("all", table, table.head(60)) == Found("all", "classifier", 0.0, 1.0)
        assert {f.p for f in each_column(table, table.head(60))} == {1.0}
