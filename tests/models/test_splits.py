import datetime as dt

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from models.splits import ByGroup, ByHash, ByTime, Given, SplitError, identity_hash

COLUMNS = ("name", "number")
ROWS = pl.DataFrame({"name": ["a", "b", None, "Zürich"], "number": [7, -3, 0, 12]})


def numbered(start: int, stop: int) -> pl.DataFrame:
    return pl.DataFrame({"id": range(start, stop)})


def by_hash(rows: pl.DataFrame) -> dict[int, str]:
    labels = ByHash(test=0.2, validation=0.1).label(rows, identity_hash(rows, ("id",)))
    return dict(zip(rows["id"], labels, strict=True))


def dated(*months: str) -> pl.DataFrame:
    days = [dt.date.fromisoformat(f"{month}-{day:02d}") for month in months for day in range(1, 29)]
    return pl.DataFrame({"day": days, "id": range(len(days))})


def test_identity_hash_never_changes() -> None:
    # XXH3-64 of `a\x1f7`, `b\x1f-3`, `\x00\x1f0` and `Zürich\x1f12`, by the xxhash library.
    assert identity_hash(ROWS, COLUMNS).tolist() == [
        8594330978350710257,
        2593897758723478687,
        14546142619485243962,
        4533138655118121031,
    ]


def test_identity_hash_tells_columns_apart() -> None:
    rows = pl.DataFrame({"a": ["x", "xy", None, ""], "b": ["yz", "z", "", None]})
    assert len(set(identity_hash(rows, ("a", "b")).tolist())) == 4


def test_identity_hash_of_no_rows_is_empty() -> None:
    assert identity_hash(ROWS.clear(), COLUMNS).shape == (0,)


def test_by_hash_keeps_every_row_when_data_grows_or_is_shuffled() -> None:
    small = by_hash(numbered(0, 500))
    grown = by_hash(numbered(0, 2000).sample(fraction=1, shuffle=True, seed=1))
    assert {row: grown[row] for row in small} == small


def test_by_hash_gives_the_shares_asked_for() -> None:
    found = list(by_hash(numbered(0, 5000)).values())
    assert found.count("test") == pytest.approx(1000, abs=100)
    assert found.count("validation") == pytest.approx(500, abs=80)
    assert found.count("train") == pytest.approx(3500, abs=120)


def test_by_hash_takes_the_ends_of_the_hash_range() -> None:
    identity = np.array([0, 2**64 - 1], np.uint64)
    labels = ByHash(test=0.2, validation=0.1).label(numbered(0, 2), identity)
    assert labels.to_list() == ["test", "train"]


@pytest.mark.parametrize("absent", ["train", "validation", "test"])
def test_by_hash_names_the_empty_split(absent: str) -> None:
    with pytest.raises(SplitError, match=f"no row fell into the {absent} split"):
        ByHash().assign({"train", "validation", "test"} - {absent})


def test_by_time_tests_on_the_newest_month_only() -> None:
    split = ByTime(column="day", validation=0.3)
    rows = dated("2013-11", "2013-12", "2014-01")
    labels = split.label(rows, identity_hash(rows, ("id",)))
    subsets = split.assign(labels)
    newest = rows["day"] >= dt.date(2014, 1, 1)
    assert {subsets[label] for label in labels.filter(newest)} == {"test"}
    assert {subsets[label] for label in labels.filter(~newest)} == {"train", "validation"}


def test_by_time_moves_the_former_test_month_into_training_without_new_labels() -> None:
    split = ByTime(column="day", validation=0.3)
    before, after = dated("2013-01", "2013-02"), dated("2013-01", "2013-02", "2013-03")
    labels = split.label(before, identity_hash(before, ("id",)))
    grown = split.label(after, identity_hash(after, ("id",)))
    assert grown.head(before.height).to_list() == labels.to_list()
    assert split.assign(labels)["2013-02"] == "test"
    assert split.assign(grown)["2013-02"] == "train"
    assert split.assign(grown)["2013-02/validation"] == "validation"
    assert split.assign(grown)["2013-03"] == "test"


@pytest.mark.parametrize(
    ("labels", "found"),
    [(["2013-01", "2013-01/validation"], "found 2013-01"), ([], "found none")],
)
def test_by_time_needs_two_months(labels: list[str], found: str) -> None:
    with pytest.raises(SplitError, match=f"at least two months of day, {found}"):
        ByTime(column="day").assign(labels)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_split_without_rows_cannot_be_declared(share: float) -> None:
    with pytest.raises(ValidationError):
        ByHash(test=share)


@pytest.mark.parametrize(
    ("labels", "absent"),
    [(["2013-01", "2013-02"], "validation"), (["2013-01/validation", "2013-02"], "train")],
)
def test_by_time_names_the_empty_split(labels: list[str], absent: str) -> None:
    with pytest.raises(SplitError, match=f"no row fell into the {absent} split"):
        ByTime(column="day").assign(labels)


def test_given_takes_the_published_test_rows_whatever_their_hash() -> None:
    rows = numbered(0, 2000).with_columns(part=pl.Series(["train", "t10k"] * 1000))
    labels = Given(test="t10k", validation=0.1).label(rows, identity_hash(rows, ("id",)))
    assert set(labels.filter(rows["part"] == "t10k")) == {"test"}
    others = labels.filter(rows["part"] == "train")
    assert set(others) == {"train", "validation"}
    assert 70 < (others == "validation").sum() < 130


def test_given_names_the_empty_split_and_the_missing_column() -> None:
    with pytest.raises(SplitError, match="no row fell into the test split"):
        Given(test="t10k").assign({"train", "validation"})
    with pytest.raises(SplitError, match="rows without a column 'part'"):
        Given(test="t10k").label(numbered(0, 3), np.zeros(3, np.uint64))


# ---- by group


def test_rows_of_one_group_are_in_one_split_that_other_columns_do_not_change() -> None:
    rows = pl.DataFrame({"group": [f"g{n // 3}" for n in range(900)], "id": range(900)})
    split = ByGroup(column="group", test=0.2, validation=0.1)
    labels = split.label(rows, identity_hash(rows, ("id",)))
    assert (
        rows.with_columns(labels)
        .group_by("group")
        .agg(pl.col("label").n_unique())["label"]
        .to_list()
        == [1] * 300
    )
    shares = labels.value_counts(normalize=True)
    assert dict(shares.iter_rows())["test"] == pytest.approx(0.2, abs=0.06)
    again = split.label(rows, np.zeros(900, np.uint64))
    assert labels.equals(again)


def test_groups_are_split_as_records_of_the_same_identity_are() -> None:
    rows = numbered(0, 300)
    assert list(ByGroup(column="id", test=0.2, validation=0.1).label(rows, np.zeros(300))) == list(
        by_hash(rows).values()
    )
