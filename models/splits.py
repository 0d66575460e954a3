"""Which rows are for training, validation and test: by hash of identity, by time, or as given.

Every row gets a *label* when it is cleaned (`train`, `test`, `2013-07`), from itself alone; which
label belongs to which split is settled when all labels are known. So a partition never has to be
cleaned again because another one arrived.
"""

import datetime
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from models.open import Open

Subset = Literal["train", "validation", "test"]
HELD_OUT = "/validation"


def identity_hash(rows: pl.DataFrame, columns: Iterable[str]) -> NDArray[np.uint64]:
    """XXH3-64 of each row's identity columns, uint64 [n]; the same in every version for ever."""
    text = rows.select(
        pl.concat_str(
            [pl.col(name).cast(pl.String).fill_null("\x00") for name in columns], separator="\x1f"
        ).cast(pl.Binary)
    ).to_series()
    return np.fromiter((xxhash.xxh3_64_intdigest(value) for value in text), np.uint64, len(text))


def _fraction(identity: NDArray[np.uint64]) -> NDArray[np.float64]:
    return identity.astype(np.float64) / 2.0**64


class SplitError(ValueError):
    """The rows at hand cannot be split as the line asks."""


class Split(Open):
    """How rows are assigned to training, validation and test."""

    @abstractmethod
    def label(self, rows: pl.DataFrame, identity: NDArray[np.uint64]) -> pl.Series:
        """A label for every row (String [n]), from the row alone."""

    @abstractmethod
    def assign(self, labels: Iterable[str]) -> dict[str, Subset]:
        """The split of every label; raises SplitError when one split would be empty."""


class ByHash(Split):
    """By hash of the record's identity: a row keeps its split while the data grows."""

    test: float = Field(0.2, gt=0, lt=0.9)
    """Share of all rows held out for the test."""
    validation: float = Field(0.05, gt=0, lt=0.5)
    """Share of all rows held out for validation."""

    def label(self, rows: pl.DataFrame, identity: NDArray[np.uint64]) -> pl.Series:
        del rows
        share = _fraction(identity)
        names = np.select(
            [share < self.test, share < self.test + self.validation],
            ["test", "validation"],
            "train",
        )
        return pl.Series("label", names.astype(object), pl.String)

    def assign(self, labels: Iterable[str]) -> dict[str, Subset]:
        _none_empty(labels)
        return {"train": "train", "validation": "validation", "test": "test"}


class ByGroup(ByHash):
    """By hash of one column: rows that share its value are all in one split, as the data grows too.

    Where several records show the same thing, such as clips of one sentence, none is in both.
    """

    column: str
    """A column of the parsed rows."""

    def label(self, rows: pl.DataFrame, identity: NDArray[np.uint64]) -> pl.Series:
        del identity
        if self.column not in rows.columns:
            raise SplitError(f"rows without a column {self.column!r} cannot be split by it")
        return super().label(rows, identity_hash(rows, (self.column,)))


class ByTime(Split):
    """By calendar month: the newest month is the test, all earlier ones are for training.

    A model is always judged on a month it has not seen, and every month that lands moves the
    former test month into training. A share of the training rows, chosen by hash, is validation.
    """

    column: str
    """A Datetime or Date column of the cleaned rows."""
    validation: float = Field(0.05, gt=0, lt=0.5)
    """Share of the rows before the test month held out for validation."""
    since: datetime.date = datetime.date(1900, 1, 1)
    """A row before this day is quarantined."""
    until: datetime.date = datetime.date(2100, 12, 31)
    """A row after this day is quarantined: one mistyped year must not become the test month."""

    def label(self, rows: pl.DataFrame, identity: NDArray[np.uint64]) -> pl.Series:
        held_out = pl.Series(_fraction(identity) < self.validation)
        month = rows.get_column(self.column).dt.strftime("%Y-%m")
        return pl.select(
            pl.when(held_out).then(month + HELD_OUT).otherwise(month).alias("label")
        ).to_series()

    def assign(self, labels: Iterable[str]) -> dict[str, Subset]:
        present = sorted(set(labels))
        months = sorted({label.removesuffix(HELD_OUT) for label in present})
        if len(months) < 2:
            found = months[0] if months else "none"
            raise SplitError(
                f"a split by time needs at least two months of {self.column}, found {found}:"
                " land an earlier or a later one"
            )

        def subset(label: str) -> Subset:
            if label.removesuffix(HELD_OUT) == months[-1]:
                return "test"
            return "validation" if label.endswith(HELD_OUT) else "train"

        assigned = {label: subset(label) for label in present}
        _none_empty(assigned.values())
        return assigned


class Given(Split):
    """By a column that says which rows are the test, as published data sets come.

    A share of the other rows, chosen by hash, is validation.
    """

    column: str = "part"
    """A String column of the parsed rows."""
    test: str
    """Its value in the rows held out for the test."""
    validation: float = Field(0.05, gt=0, lt=0.5)
    """Share of the other rows held out for validation."""

    def label(self, rows: pl.DataFrame, identity: NDArray[np.uint64]) -> pl.Series:
        if self.column not in rows.columns:
            raise SplitError(f"rows without a column {self.column!r} cannot be split by it")
        given = rows.get_column(self.column).to_numpy() == self.test
        names = np.select(
            [given, _fraction(identity) < self.validation], ["test", "validation"], "train"
        )
        return pl.Series("label", names.astype(object), pl.String)

    def assign(self, labels: Iterable[str]) -> dict[str, Subset]:
        _none_empty(labels)
        return {"train": "train", "validation": "validation", "test": "test"}


def _none_empty(found: Iterable[str]) -> None:
    present = set(found)
    for name in ("train", "validation", "test"):
        if name not in present:
            raise SplitError(f"no row fell into the {name} split: land more data")
