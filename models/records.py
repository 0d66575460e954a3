"""Records of a CSV or Parquet object: typed rows, and those that do not fit, with reasons."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from models.data import REFUSED, Parsed, RefusedObject

TYPES: dict[str, type[pl.DataType]] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "text": pl.String,
}
NAMES = {kind: name for name, kind in TYPES.items()}
NULLS = ["NA", ""]


def read_records(name: str, payload: bytes, types: Mapping[str, type[pl.DataType]]) -> Parsed:
    """The columns of `types` from a CSV or, by the ending of its name, a Parquet object.

    A record that does not fit is refused with its reason; raises RefusedObject when the object as a
    whole is empty, unreadable or lacks a column.
    """
    if not payload:
        raise RefusedObject("the object is empty")
    try:
        if name.endswith(".parquet"):
            rows = pl.read_parquet(io.BytesIO(payload))
            _columns_present(rows.columns, types)
            return _converted(rows.select(list(types)).with_row_index("row"), types, [])
        header = pl.read_csv(payload, n_rows=0, infer_schema=False).columns
        _columns_present(header, types)
        if _ragged(payload, len(header)):
            return _read_record_by_record(payload, header, types)
        try:
            rows = pl.read_csv(
                payload,
                columns=list(types),
                schema_overrides=dict(types),
                null_values=NULLS,
                row_index_name="row",
            )
            return Parsed(rows.select("row", *types), pl.DataFrame(schema=REFUSED))
        except pl.exceptions.ComputeError:
            return _read_record_by_record(payload, header, types)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, csv.Error) as error:
        raise RefusedObject(f"not readable as {name.rpartition('.')[2]}: {error}") from None


def _columns_present(found: Sequence[str], wanted: Mapping[str, Any]) -> None:
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise RefusedObject(f"column {', '.join(missing)} is missing")


def _ragged(payload: bytes, fields: int) -> bool:
    """Whether some record has not as many fields as the header: Polars fills or fails silently.

    Counting is a hundredth of reading. Where fields are quoted, commas tell nothing.
    """
    lines = payload.count(b"\n") + (not payload.endswith(b"\n"))
    return b'"' not in payload and payload.count(b",") != lines * (fields - 1)


def _read_record_by_record(
    payload: bytes, header: Sequence[str], types: Mapping[str, type[pl.DataType]]
) -> Parsed:
    """Read every field as text and convert value by value, to name the rows that do not fit."""
    kept: list[list[str | None]] = []
    numbers, refused = [], []
    records = csv.reader(io.StringIO(payload.decode("utf-8-sig")), strict=True)
    next(records)
    for row, record in enumerate(records):
        if len(record) == len(header):
            numbers.append(row)
            kept.append([None if field in NULLS else field for field in record])
        elif record:
            reason = f"has {len(record)} fields, the header has {len(header)}"
            refused.append({"row": row, "field": "record", "reason": reason})
    text = pl.DataFrame(kept, schema=dict.fromkeys(header, pl.String), orient="row")
    text = text.select(pl.Series("row", numbers, pl.UInt32), *types)
    return _converted(text, types, refused)


def _converted(
    raw: pl.DataFrame, types: Mapping[str, type[pl.DataType]], refused: Sequence[dict[str, Any]]
) -> Parsed:
    """Rows whose values all fit the wanted types; the others are refused, one reason each."""
    typed = raw.select("row", *(pl.col(n).cast(t, strict=False) for n, t in types.items()))
    refusals = [pl.DataFrame(list(refused), schema=REFUSED)]
    wrong = pl.repeat(False, raw.height, eager=True)
    for column, kind in types.items():
        before, after = raw.get_column(column), typed.get_column(column)
        bad = after.is_null() & before.is_not_null()
        if before.dtype.is_float() and kind is pl.Int64:
            bad |= (after.cast(before.dtype) != before).fill_null(False)
        bad &= ~wrong
        reason = pl.format(f"'{{}}' is no {NAMES[kind]}", pl.col(column)).alias("reason")
        found = raw.filter(bad).select("row", pl.lit(column).alias("field"), reason)
        refusals.append(found.cast(REFUSED))  # type: ignore[arg-type]
        wrong |= bad
    return Parsed(typed.filter(~wrong), pl.concat(refusals).sort("row"))
