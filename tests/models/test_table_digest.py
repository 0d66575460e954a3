import datetime as dt
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.table_digest import table_digest

ROOT = Path(__file__).resolve().parents[2]
TABLE = pl.DataFrame(
    {
        "id": pl.Series([1, -2, 3, 4], dtype=pl.Int64),
        "x": pl.Series([0.5, None, -1e300, float("nan")], dtype=pl.Float64),
        "text": pl.Series(["a", "", None, "Zürich"], dtype=pl.String),
        "flag": pl.Series([True, None, False, True], dtype=pl.Boolean),
        "day": pl.Series([dt.date(2013, 1, 1), None, None, dt.date(1969, 1, 1)], dtype=pl.Date),
        "pixels": pl.Series([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=pl.Array(pl.UInt8, 2)),
    }
)
GOLDEN = "e5c01bc451d9cc80eeff6788390922c87fb17087b457de5153f2baead84db666"


def changed(name: str, *values: object) -> pl.DataFrame:
    return TABLE.with_columns(pl.Series(name, list(values), dtype=TABLE.schema[name]))


def parquet(table: pl.DataFrame, **options: object) -> pl.DataFrame:
    packed = io.BytesIO()
    table.write_parquet(packed, **options)  # type: ignore[arg-type]
    return pl.read_parquet(io.BytesIO(packed.getvalue()))


def test_it_never_changes() -> None:
    assert table_digest(TABLE) == GOLDEN


@pytest.mark.parametrize(
    "same",
    [
        pl.concat([TABLE.head(1), TABLE.slice(1, 2), TABLE.tail(1)], rechunk=False),
        pl.concat([TABLE, TABLE]).slice(4, 4),
        pl.concat([TABLE.head(3), TABLE]).tail(4),
        parquet(TABLE, row_group_size=1, compression="zstd"),
        parquet(TABLE, row_group_size=3, compression="uncompressed", statistics=True),
        pl.from_arrow(TABLE.to_arrow()),
        TABLE.sort("id")
        .sort("id", descending=True)[[1, 0, 2, 3]]
        .sort(pl.col("id").replace_strict([1, -2, 3, 4], [0, 1, 2, 3])),
    ],
    ids=["chunks", "slice", "slice-over-chunks", "row-groups", "plain", "arrow", "sorted-back"],
)
def test_how_a_table_is_kept_does_not_count(same: pl.DataFrame) -> None:
    assert same.equals(TABLE)
    assert table_digest(same) == GOLDEN


def test_what_lies_under_a_null_does_not_count() -> None:
    def with_garbage(values: list[int]) -> pl.DataFrame:
        valid = pa.py_buffer(bytes([0b101]))
        data = pa.py_buffer(np.array(values, np.int64))
        array = pa.Array.from_buffers(pa.int64(), 3, [valid, data])
        return pl.DataFrame({"a": pl.Series("a", array)})

    first, second = with_garbage([1, 111, 3]), with_garbage([1, -999, 3])
    assert first["a"].to_list() == second["a"].to_list() == [1, None, 3]
    assert table_digest(first) == table_digest(second)


@pytest.mark.parametrize(
    "other",
    [
        changed("id", 1, -2, 3, 5),
        changed("x", 0.5, None, -1e300, 0.0),
        changed("x", 0.5, 0.0, -1e300, float("nan")),
        changed("x", None, 0.5, -1e300, float("nan")),
        changed("text", "a", None, "", "Zürich"),
        changed("text", "", "a", None, "Zürich"),
        changed("text", "a", "", None, "Zurich"),
        changed("flag", True, False, None, True),
        changed("day", dt.date(2013, 1, 2), None, None, dt.date(1969, 1, 1)),
        changed("pixels", [1, 2], [3, 4], [5, 7], [6, 8]),
        TABLE.rename({"x": "y"}),
        TABLE.with_columns(pl.col("id").cast(pl.Int32)),
        TABLE.with_columns(pl.col("id").cast(pl.UInt64, strict=False)),
        TABLE.select(reversed(TABLE.columns)),
        TABLE.reverse(),
        TABLE.head(3),
        TABLE.drop("flag"),
        pl.concat([TABLE, TABLE.tail(1)]),
    ],
)
def test_whatever_a_reader_would_see_counts(other: pl.DataFrame) -> None:
    assert other.schema != TABLE.schema or not other.equals(TABLE)
    assert table_digest(other) != GOLDEN


def test_bytes_do_not_move_between_texts_or_columns() -> None:
    tables = [
        pl.DataFrame({"a": ["xy", "z"], "b": ["", ""]}),
        pl.DataFrame({"a": ["x", "yz"], "b": ["", ""]}),
        pl.DataFrame({"a": ["x", "y"], "b": ["z", ""]}),
        pl.DataFrame({"a": ["x", "y"], "b": ["", "z"]}),
    ]
    assert len({table_digest(table) for table in tables}) == 4


def test_bytes_count_as_text_does_and_differ_from_it() -> None:
    sounds = [b"xy", b"", None, b"\xff\x00z"]
    table = pl.DataFrame({"a": pl.Series(sounds, dtype=pl.Binary)})
    same = pl.concat([table.head(1), table.slice(1, 2), table.tail(1)], rechunk=False)
    assert table_digest(parquet(same)) == table_digest(same) == table_digest(table)
    moved = pl.DataFrame({"a": pl.Series([b"x", b"y", None, b"\xff\x00z"], dtype=pl.Binary)})
    text = pl.DataFrame({"a": ["xy", "", None, "z"]})
    assert len({table_digest(t) for t in (table, moved, text, text.cast(pl.Binary))}) == 4


def test_values_cannot_pass_for_the_bitmap_of_nulls() -> None:
    # The first value's bytes spell the mark of a column with nulls and the bitmap of 24 rows.
    disguise = int.from_bytes(b"nulls" + bytes([0b10000000, 0, 0]), "little")
    rest = list(range(23))
    plain = pl.DataFrame({"a": [disguise, *rest]})
    with_null = pl.DataFrame({"a": [None, *rest]}, schema={"a": pl.Int64})
    assert table_digest(plain) != table_digest(with_null)


def test_empty_tables_differ_by_their_schema() -> None:
    text = pl.DataFrame(schema={"a": pl.String})
    number = pl.DataFrame(schema={"a": pl.Int64})
    assert table_digest(text) == table_digest(pl.DataFrame({"a": ["x"]}).clear())
    assert table_digest(text) != table_digest(number)


def test_a_categorical_counts_by_its_values_in_every_process() -> None:
    program = (
        "import polars as pl; from models.table_digest import table_digest\n"
        "{before}\n"
        "print(table_digest(pl.DataFrame({{'a': pl.Series(['u', 'v'], dtype=pl.Categorical)}})))"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program.format(before=before)],
            check=True, capture_output=True, text=True, cwd=ROOT,
        ).stdout
        for before in ("", "kept = pl.Series(['w', 'v', 'u'], dtype=pl.Categorical)")
    ]  # fmt: skip
    assert digests[0] == digests[1]


@pytest.mark.parametrize("values", [[[1], [2, 3]], [{"a": 1}]])
def test_nested_values_are_refused(values: list[object]) -> None:
    with pytest.raises(TypeError, match="no digest for"):
        table_digest(pl.DataFrame({"a": values}))
