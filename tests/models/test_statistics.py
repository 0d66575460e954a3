import numpy as np
import pytest

from models.statistics import Moments, fold

VALUES = np.random.default_rng(0).normal(1000.0, 3.0, 997)


def test_moments_are_those_of_numpy() -> None:
    found = Moments.of(VALUES)
    assert found.count == len(VALUES)
    assert found.mean == pytest.approx(np.mean(VALUES), rel=1e-14)
    assert found.deviation == pytest.approx(np.std(VALUES), rel=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_merged_moments_are_those_of_the_whole(parts: int) -> None:
    pieces = [Moments.of(part) for part in np.array_split(VALUES, parts)]
    found = fold(pieces, Moments.merge)
    assert found.count == len(VALUES)
    assert found.mean == pytest.approx(np.mean(VALUES), rel=1e-14)
    assert found.deviation == pytest.approx(np.std(VALUES), rel=1e-10)


def test_a_small_spread_around_a_large_mean_survives() -> None:
    values = 1e9 + np.tile([-1.0, 1.0], 500)
    found = fold([Moments.of(part) for part in np.array_split(values, 9)], Moments.merge)
    assert found.deviation == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("values", [[], [np.nan], [np.nan, np.inf, -np.inf]])
def test_what_is_no_number_has_no_moments(values: list[float]) -> None:
    assert Moments.of(np.array(values, np.float64)) == Moments()


def test_nan_and_infinity_do_not_count() -> None:
    assert Moments.of(np.array([1.0, np.nan, 3.0, np.inf])) == Moments.of(np.array([1.0, 3.0]))


def test_nothing_merges_with_anything() -> None:
    some = Moments.of(VALUES)
    assert Moments().merge(some) == some.merge(Moments()) == some
    assert Moments().merge(Moments()) == Moments()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e12, 0.1])
def test_equal_values_have_deviation_one(value: float) -> None:
    assert Moments.of(np.full(1000, value)).deviation == 1.0
    assert Moments().deviation == 1.0


def test_fold_pairs_neighbours_in_order() -> None:
    assert fold(list("abcde"), lambda a, b: f"({a}{b})") == "(((ab)(cd))e)"
    assert fold(["a"], lambda a, b: a + b) == "a"
    assert fold(list("abcdefg"), lambda a, b: a + b) == "abcdefg"
