"""Tables: CSV and Parquet objects whose columns become numbers and categories."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.data import (
    Check,
    Data,
    Features,
    Parsed,
    Piece,
    RefusedObject,
    RefusedRequest,
    Tensors,
)
from models.open import Frozen, Function, name_of
from models.pieces import csv_pieces, parquet_pieces
from models.records import NULLS, TYPES, read_records
from models.splits import ByTime
from models.statistics import Moments, fold
from models.tensors import TensorSpec

Column = Literal["integer", "number", "text"]
UNKNOWN, OTHER = 0, "other"
MOST_COLUMNS = 10_000
"""Of a CSV that a person sends: a parser holds kilobytes for each."""
_HEADER = re.compile(rb'(?:\xef\xbb\xbf)?+[\r\n]*+(?:[^"\n]++|"[^"]*+"?)*+')
"""What Polars takes for it: breaks before it are skipped, and those in quotes do not end it."""


class Number(Frozen):
    """A numeric feature; null is allowed and reaches the network as NaN."""

    name: str
    unit: str
    low: float = -1e100
    """Smallest plausible value; a row below is quarantined."""
    high: float = 1e100
    """Largest plausible value; a row above is quarantined."""


class Category(Frozen):
    """A feature with few distinct texts; rare and unseen ones share index 0."""

    name: str
    minimum: int = Field(20, ge=1)
    """Training rows a value must be seen in to have an index of its own."""


class FittedNumber(Frozen):
    """A numeric feature with the mean and deviation of its training rows."""

    name: str
    unit: str
    mean: float
    deviation: float = Field(gt=0)


class FittedCategory(Frozen):
    """A category with the values of its training rows, sorted; index 0 is everything else."""

    name: str
    vocabulary: tuple[str, ...]


class TableFeatures(Features):
    """Columns as two tensors: `numbers` FP32 [n, k], NaN where null; `categories` INT64 [n, c]."""

    numbers: tuple[FittedNumber, ...]
    categories: tuple[FittedCategory, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        found = (
            TensorSpec(name="numbers", datatype="FP32", shape=(-1, len(self.numbers))),
            TensorSpec(name="categories", datatype="INT64", shape=(-1, len(self.categories))),
        )
        return tuple(spec for spec in found if spec.shape[1])

    def encode(self, rows: pl.DataFrame) -> Tensors:
        tensors: Tensors = {}
        if self.numbers:
            columns = [
                rows.get_column(n.name).cast(pl.Float32).fill_null(float("nan")).to_numpy()
                for n in self.numbers
            ]
            tensors["numbers"] = np.stack(columns, axis=1)
        if self.categories:
            indices = [
                rows.get_column(c.name)
                .replace_strict(
                    list(c.vocabulary),
                    range(1, len(c.vocabulary) + 1),
                    default=UNKNOWN,
                    return_dtype=pl.Int64,
                )
                .to_numpy()
                for c in self.categories
            ]
            tensors["categories"] = np.stack(indices, axis=1)
        return tensors

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """The features themselves; a value without an index of its own is `other`."""
        columns: dict[str, Any] = {}
        for index, number in enumerate(self.numbers):
            column = tensors["numbers"][:, index].astype(np.float64)
            columns[number.name] = pl.Series(column).fill_nan(None)
        for index, category in enumerate(self.categories):
            names = np.array([OTHER, *category.vocabulary], dtype=object)
            columns[category.name] = pl.Series(
                names[tensors["categories"][:, index]], dtype=pl.String
            )
        return pl.DataFrame(columns)

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """One JSON record, a JSON list of records, or CSV with a header (`text/csv`)."""
        schema: dict[str, Any] = {n.name: pl.Float64 for n in self.numbers}
        schema |= {c.name: pl.String for c in self.categories}
        try:
            if media_type == "text/csv":
                # Here too what a name in quotes holds; that is a bound, and no count.
                header = _HEADER.match(payload)
                if payload.count(b",", 0, header and header.end()) >= MOST_COLUMNS:
                    raise RefusedRequest(f"the CSV has over {MOST_COLUMNS:,} columns")
                rows = pl.read_csv(payload, schema_overrides=schema, null_values=NULLS)
                missing = sorted(set(schema) - set(rows.columns))
                if missing:
                    raise RefusedRequest(f"the CSV has no column {', '.join(missing)}")
                return rows.select(list(schema))
            records = orjson.loads(payload)
        except (pl.exceptions.PolarsError, orjson.JSONDecodeError) as error:
            raise RefusedRequest(f"not readable as {media_type}: {error}") from None
        records = records if isinstance(records, list) else [records]
        return pl.DataFrame([self._record(r, schema) for r in records], schema=schema)

    def _record(self, record: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(record, dict):
            raise RefusedRequest(f"a record must be a JSON object, not {type(record).__name__}")
        missing = sorted(set(schema) - set(record))
        if missing:
            raise RefusedRequest(f"the record has no {', '.join(missing)} (null is allowed)")
        for name, kind in schema.items():
            value, wanted = record[name], str if kind is pl.String else (int, float)
            if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
                raise RefusedRequest(f"{name}: {value!r} is not a {kind}")
        return {name: record[name] for name in schema}

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """A JSON record."""
        names = [*(n.name for n in self.numbers), *(c.name for c in self.categories)]
        return orjson.dumps(row.select(names).row(0, named=True)), "application/json"

    def slices(self, rows: pl.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """One group for every frequent value of every category."""
        for category in self.categories:
            column = rows.get_column(category.name)
            for value in category.vocabulary:
                yield f"{category.name}={value}", (column == value).fill_null(False).to_numpy()


class Tables(Data):
    """CSV objects with a header and one record a line, or Parquet objects."""

    columns: dict[str, Column]
    """The columns a raw object must have, in any order; others are ignored."""
    clean: Function
    """`clean(rows: LazyFrame, references) -> LazyFrame`: keeps the column `row`, adds features."""
    numbers: tuple[Number, ...] = ()
    categories: tuple[Category, ...] = ()
    suffixes: tuple[str, ...] = (".csv", ".parquet")

    @property
    def kept(self) -> tuple[str, ...]:
        return (*(n.name for n in self.numbers), *(c.name for c in self.categories))

    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        return self._cleaned(name, read_records(name, payload, self._types()), references)

    def parse_unlabelled(
        self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame], target: str
    ) -> Parsed:
        """As `parse`, with a target that is null, whatever the object says.

        Columns that `clean` makes the target from are still needed.
        """
        types = self._types()
        kind = types.pop(target, None)
        raw = read_records(name, payload, types)
        if kind is not None:
            raw = Parsed(raw.rows.with_columns(pl.lit(None, kind).alias(target)), raw.refused)
        return self._cleaned(name, raw, references)

    def pieces(self, name: str, path: Path, size: int) -> Iterator[Piece]:
        """Records below their header; a `clean` that looks at other rows sees those of a piece."""
        divided = parquet_pieces if name.endswith(".parquet") else csv_pieces
        return divided(path, size)

    def _types(self) -> dict[str, type[pl.DataType]]:
        return {name: TYPES[kind] for name, kind in self.columns.items()}

    def _cleaned(self, name: str, raw: Parsed, references: Mapping[str, pl.DataFrame]) -> Parsed:
        try:
            cleaned: pl.DataFrame = self.clean(raw.rows.lazy(), references).collect()
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{name}: {name_of(self.clean)} failed: {error}") from None
        if (
            cleaned.height != raw.rows.height
            or cleaned.get_column("row").n_unique() != cleaned.height
        ):
            raise ValueError(
                f"{name}: clean got {raw.rows.height} rows and gave {cleaned.height}; it must give"
                " every row once: mark unwanted rows by a null or an implausible value instead"
            )
        return Parsed(cleaned, raw.refused)

    def reference(self, name: str, payload: bytes) -> pl.DataFrame:
        try:
            return pl.read_csv(payload, null_values=NULLS, infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            raise RefusedObject(f"reference {name}: {error}") from None

    def checks(self) -> Sequence[Check]:
        finite = [
            Check(
                number.name,
                f"not within {number.low:g} to {number.high:g} {number.unit}",
                pl.col(number.name).is_null()
                | pl.col(number.name).is_between(number.low, number.high),
            )
            for number in self.numbers
        ]
        # A row without a date would be a month of its own, and the newest one.
        dated = [self.split.column] if isinstance(self.split, ByTime) else []
        known = [
            Check(name, "missing", pl.col(name).is_not_null())
            for name in dict.fromkeys([*self.identity, *dated])
        ]
        if isinstance(self.split, ByTime):
            since, until = self.split.since, self.split.until
            day = pl.col(self.split.column).cast(pl.Date)
            reason = f"not within {since} to {until}"
            within = day.is_null() | day.is_between(since, until)
            known.append(Check(self.split.column, reason, within))
        return [*known, *finite]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        numbers = {
            n.name: Moments.of(
                rows.get_column(n.name).cast(pl.Float64).drop_nulls().to_numpy()
            ).model_dump()
            for n in self.numbers
        }
        categories = {
            c.name: dict(
                rows.get_column(c.name).drop_nulls().value_counts().sort(c.name).iter_rows()
            )
            for c in self.categories
        }
        return {"numbers": numbers, "categories": categories}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> TableFeatures:
        numbers = []
        for number in self.numbers:
            parts = [Moments.model_validate(s["numbers"][number.name]) for s in summaries]
            total = fold(parts, Moments.merge)
            if not total.count:
                raise ValueError(
                    f"{number.name} has no value in any training row: mend the source or take it"
                    " out of the line"
                )
            numbers.append(
                FittedNumber(
                    name=number.name,
                    unit=number.unit,
                    mean=total.mean,
                    deviation=total.deviation,
                )
            )
        categories = []
        for category in self.categories:
            counts: Counter[str] = Counter()
            for summary in summaries:
                counts.update(summary["categories"][category.name])
            frequent = sorted(v for v, count in counts.items() if count >= category.minimum)
            categories.append(FittedCategory(name=category.name, vocabulary=tuple(frequent)))
        return TableFeatures(numbers=tuple(numbers), categories=tuple(categories))
