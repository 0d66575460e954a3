import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.data import RefusedObject, RefusedRequest
from models.records import read_records
from models.splits import ByHash, ByTime
from models.tables import (
    Category,
    FittedCategory,
    FittedNumber,
    Number,
    TableFeatures,
    Tables,
)

NO_REFERENCES: dict[str, pl.DataFrame] = {}
CSV = b"id,zone,km\n1,north,1.5\n2,south,NA\n3,,4\n"


def as_it_is(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    del references
    return rows


def drops(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    del references
    return rows.filter(pl.col("id") > 1)


def doubles(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    del references
    return pl.concat([rows, rows])


def swaps_one(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    del references
    return pl.concat([rows.head(1), rows.head(2)])


def joins(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    return rows.join(references["tolls"].lazy(), "zone", how="left", maintain_order="left")


def tables(clean: Any = as_it_is, **fields: Any) -> Tables:
    given: dict[str, Any] = {
        "raw": "trips/",
        "columns": {"id": "integer", "zone": "text", "km": "number"},
        "clean": clean,
        "identity": ("id",),
        "split": ByHash(),
        "numbers": (Number(name="km", unit="km", low=0, high=100),),
        "categories": (Category(name="zone", minimum=2),),
    }
    return Tables(**{**given, **fields})


def parquet(table: pl.DataFrame) -> bytes:
    packed = io.BytesIO()
    table.write_parquet(packed)
    return packed.getvalue()


def features(*kilometres: float | None, zones: tuple[str, ...] = ()) -> TableFeatures:
    rows = pl.DataFrame(
        {"km": pl.Series(kilometres, dtype=pl.Float64), "zone": zones or ("a",) * len(kilometres)}
    )
    return tables().fit([tables().summarise(rows)])


FEATURES = TableFeatures(
    numbers=(
        FittedNumber(name="km", unit="km", mean=2.0, deviation=1.5),
        FittedNumber(name="toll", unit="USD", mean=0.0, deviation=1.0),
    ),
    categories=(FittedCategory(name="zone", vocabulary=("north", "south")),),
)
ROWS = pl.DataFrame(
    {
        "km": [1.5, None, -0.25],
        "toll": [1e-7, 3.0, None],
        "zone": ["south", None, "never seen"],
        "row": [0, 1, 2],
    }
)


# ---- parse


def test_a_csv_becomes_rows_numbered_from_0() -> None:
    found = tables().parse("a.csv", CSV, NO_REFERENCES)
    assert found.rows.rows() == [(0, 1, "north", 1.5), (1, 2, "south", None), (2, 3, None, 4.0)]
    assert found.rows.schema["row"] == pl.UInt32
    assert found.refused.height == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"km,id,zone\n1.5,1,north\nNA,2,south\n4,3,\n",
        b"junk,km,row,id,zone\nx,1.5,9,1,north\n,NA,9,2,south\n\xc3\xa9,4,9,3,\n",
        b"\xef\xbb\xbf" + CSV,
        CSV.replace(b"\n", b"\r\n"),
        CSV.rstrip(),
    ],
    ids=["reordered", "extra", "byte-order-mark", "crlf", "no-last-newline"],
)
def test_other_spellings_of_the_same_csv_are_the_same_rows(payload: bytes) -> None:
    expected = tables().parse("a.csv", CSV, NO_REFERENCES)
    assert tables().parse("a.csv", payload, NO_REFERENCES).rows.equals(expected.rows)


def test_parquet_gives_the_same_rows_as_csv() -> None:
    expected = tables().parse("a.csv", CSV, NO_REFERENCES).rows
    raw = expected.select(pl.lit("x").alias("junk"), "km", "zone", pl.col("id").cast(pl.Int32))
    found = tables().parse("a.parquet", parquet(raw), NO_REFERENCES)
    assert found.rows.equals(expected)


def test_parquet_with_a_column_called_row_is_fine() -> None:
    expected = tables().parse("a.csv", CSV, NO_REFERENCES).rows
    raw = expected.with_columns(pl.lit(9).alias("row"))
    assert tables().parse("a.parquet", parquet(raw), NO_REFERENCES).rows.equals(expected)


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("a.csv", b"", "the object is empty"),
        ("a.parquet", b"", "the object is empty"),
        ("a.csv", b"\n", "not readable as csv"),
        ("a.csv", b"id,km\n1,2\n", "column zone is missing"),
        ("a.csv", b"\xff\xfe\x00garbage", "column id, km, zone is missing"),
        ("a.csv", b"id,zone,km\n1,\xff,2\n", "not readable as csv"),
        ("a.csv", b'id,zone,km\n1,"north,2\n2,south,3\n', "not readable as csv"),
        ("a.parquet", b"id,zone,km\n", "not readable as parquet"),
        ("a.parquet", parquet(ROWS)[:-9], "not readable as parquet"),
        ("a.parquet", parquet(ROWS), "column id is missing"),
    ],
)
def test_an_unreadable_object_is_refused_whole(name: str, payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedObject, match=reason):
        tables().parse(name, payload, NO_REFERENCES)


def test_a_csv_of_a_header_only_has_no_rows() -> None:
    found = tables().parse("a.csv", b"id,zone,km\n", NO_REFERENCES)
    assert (found.rows.height, found.refused.height) == (0, 0)


def test_a_wrong_type_in_row_17_quarantines_row_17_and_says_why() -> None:
    lines = [f"{i},north,{i / 2}" for i in range(40)]
    lines[17] = "17,north,far"
    lines[23] = "x23,north,near"
    payload = "\n".join(["id,zone,km", *lines]).encode()
    found = tables().parse("a.csv", payload, NO_REFERENCES)
    assert found.refused.select("row", "field").rows() == [(17, "km"), (23, "id")]
    for said, value in zip(found.refused["reason"], ("far", "x23"), strict=True):
        assert value in said
    assert found.rows["row"].to_list() == [i for i in range(40) if i not in (17, 23)]
    assert found.rows["id"].to_list() == found.rows["row"].to_list()


def test_a_record_cut_short_loses_no_other_record() -> None:
    found = tables().parse("a.csv", b"id,zone,km\n1,north,1.5\n2,south,2.5\n3,ea", NO_REFERENCES)
    whole = found.rows.filter(pl.col("row") < 2)
    assert whole.rows() == [(0, 1, "north", 1.5), (1, 2, "south", 2.5)]
    assert found.rows.height + found.refused.height == 3


# ---- clean


def test_references_reach_the_clean_function() -> None:
    data = tables(joins, references={"tolls": "reference/tolls.csv"})
    tolls = data.reference("tolls", b"zone,toll\nnorth,5\n")
    found = data.parse("a.csv", CSV, {"tolls": tolls})
    assert found.rows["toll"].to_list() == [5, None, None]


def test_a_broken_reference_is_refused_by_name() -> None:
    with pytest.raises(RefusedObject, match="reference tolls"):
        tables(joins).reference("tolls", b"")


@pytest.mark.parametrize(("clean", "gave"), [(drops, 2), (doubles, 6), (swaps_one, 3)])
def test_a_clean_function_must_give_every_row_once(clean: Any, gave: int) -> None:
    with pytest.raises(ValueError, match=f"a.csv: clean got 3 rows and gave {gave}"):
        tables(clean).parse("a.csv", CSV, NO_REFERENCES)


# ---- checks


@pytest.mark.parametrize("value", [-0.01, 100.01, np.nan, np.inf, -np.inf])
def test_a_number_out_of_range_fails_its_check(value: float) -> None:
    rows = pl.DataFrame({"id": [1], "km": [value]})
    failed = [c for c in tables().checks() if not rows.select(c.holds).item()]
    assert [(c.field, c.reason) for c in failed] == [("km", "not within 0 to 100 km")]


@pytest.mark.parametrize("value", [0.0, 100.0, 50.0, None])
def test_a_number_in_range_or_null_passes(value: float | None) -> None:
    rows = pl.DataFrame({"id": [1], "km": pl.Series([value], dtype=pl.Float64)})
    assert all(rows.select(c.holds).item() for c in tables().checks())


def test_a_number_without_bounds_must_be_finite_still() -> None:
    data = tables(numbers=(Number(name="km", unit="km"),))
    rows = pl.DataFrame({"id": [1] * 4, "km": [np.nan, np.inf, -np.inf, 1e99]})
    holds = [rows.select(c.holds).to_series().to_list() for c in data.checks() if c.field == "km"]
    assert holds == [[False, False, False, True]]


def test_a_record_without_identity_fails_its_check() -> None:
    rows = pl.DataFrame({"id": [None], "km": [1.0]}, schema={"id": pl.Int64, "km": pl.Float64})
    failed = [c for c in tables().checks() if not rows.select(c.holds).item()]
    assert [(c.field, c.reason) for c in failed] == [("id", "missing")]


def test_a_record_without_the_date_it_is_split_by_fails_its_check() -> None:
    data = tables(split=ByTime(column="day"))
    rows = pl.DataFrame(
        {"id": [1], "km": [1.0], "day": [None]},
        schema={"id": pl.Int64, "km": pl.Float64, "day": pl.Date},
    )
    failed = [c for c in data.checks() if not rows.select(c.holds).item()]
    assert [(c.field, c.reason) for c in failed] == [("day", "missing")]


# ---- fit


def test_fit_combines_partitions_to_the_moments_of_all_rows() -> None:
    values = [[1.0, None, 3.0], [8.0], [], [2.5, 2.5]]
    summaries = [
        tables().summarise(
            pl.DataFrame({"km": pl.Series(v, dtype=pl.Float64), "zone": ["a"] * len(v)})
        )
        for v in values
    ]
    (found,) = tables().fit(summaries).numbers
    seen = [1.0, 3.0, 8.0, 2.5, 2.5]
    assert found.mean == pytest.approx(np.mean(seen))
    assert found.deviation == pytest.approx(np.std(seen))


def test_a_column_without_any_value_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="km has no value in any training row"):
        features(None, None)


def test_a_column_of_one_value_is_scaled_to_finite_numbers() -> None:
    (found,) = features(7.0, 7.0, 7.0).numbers
    assert found.mean == 7.0
    assert np.isfinite((np.float32(7.5) - found.mean) / found.deviation)


def test_rare_values_of_a_category_have_no_index() -> None:
    zones = ("b", "a", "rare", "b", "a")
    (found,) = features(1.0, 2.0, 3.0, 4.0, 5.0, zones=zones).categories
    assert found.vocabulary == ("a", "b")


# ---- encode, read, write


def test_encode_gives_the_declared_tensors() -> None:
    tensors = FEATURES.encode(ROWS)
    for spec in FEATURES.inputs:
        spec.check(tensors[spec.name])
    assert tensors["categories"].tolist() == [[2], [0], [0]]
    expected = np.array([[1.5, 1e-7], [np.nan, 3.0], [-0.25, np.nan]], np.float32)
    np.testing.assert_array_equal(tensors["numbers"], expected)


@pytest.mark.parametrize("row", range(3))
def test_what_a_person_sends_is_encoded_as_in_training(row: int) -> None:
    written = FEATURES.write(ROWS.slice(row, 1))
    sent, trained = FEATURES.encode(FEATURES.read(*written)), FEATURES.encode(ROWS.slice(row, 1))
    assert sent.keys() == trained.keys()
    for name, tensor in trained.items():
        np.testing.assert_array_equal(sent[name], tensor)
        assert sent[name].dtype == tensor.dtype


def test_a_list_of_records_and_a_csv_are_read_alike() -> None:
    records = b'[{"km":1,"toll":null,"zone":"north"},{"toll":2.5,"zone":null,"km":3}]'
    csv = b"zone,toll,km\nnorth,NA,1\n,2.5,3\n"
    found = FEATURES.read(records, "application/json")
    assert found.height == 2
    assert found.equals(FEATURES.read(csv, "text/csv"))


@pytest.mark.parametrize(
    ("payload", "media_type", "message"),
    [
        (b"{", "application/json", "not readable as application/json"),
        (b"", "application/json", "not readable as application/json"),
        (b"7", "application/json", "a record must be a JSON object, not int"),
        (b"[[1]]", "application/json", "a record must be a JSON object, not list"),
        (b'{"km":1,"zone":"a"}', "application/json", "the record has no toll"),
        (b'{"km":"1","toll":1,"zone":"a"}', "application/json", "km: '1' is not a"),
        (b'{"km":true,"toll":1,"zone":"a"}', "application/json", "km: True is not a"),
        (b'{"km":1,"toll":1,"zone":3}', "application/json", "zone: 3 is not a"),
        (b"km,zone\n1,a\n", "text/csv", "the CSV has no column toll"),
        (b"km,toll,zone\nfar,1,a\n", "text/csv", "not readable as text/csv"),
        (b"", "text/csv", "not readable as text/csv"),
        (b"x," * 10_000 + b"y\n", "text/csv", "the CSV has over 10,000 columns"),
        # What is taken for the header begins behind breaks, and goes on behind quoted ones.
        (b"\n\r\n" + b"x," * 10_000 + b"y\n", "text/csv", "the CSV has over 10,000 columns"),
        (b"\xef\xbb\xbf\n" + b"x," * 10_000, "text/csv", "the CSV has over 10,000 columns"),
        (b'"x\n",' + b"x," * 10_000 + b"y\n", "text/csv", "the CSV has over 10,000 columns"),
        (b'x"\n"' + b",x" * 10_000 + b"\n", "text/csv", "the CSV has over 10,000 columns"),
        (b"km,zone\n" + b"1,a\n" * 10_000, "text/csv", "the CSV has no column toll"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    payload: bytes, media_type: str, message: str
) -> None:
    with pytest.raises(RefusedRequest, match=message):
        FEATURES.read(payload, media_type)


def test_slices_are_the_values_of_every_category() -> None:
    found = {name: rows.tolist() for name, rows in FEATURES.slices(ROWS)}
    assert found == {"zone=north": [False] * 3, "zone=south": [True, False, False]}


def test_rows_with_too_many_or_too_few_fields_are_refused_by_number() -> None:
    payload = b"id,zone,km\n1,north,2\n2,south,3,4\n3,west\n4,east,5\n"
    parsed = read_records("a.csv", payload, {"id": pl.Int64, "zone": pl.String, "km": pl.Float64})
    assert parsed.rows.get_column("row").to_list() == [0, 3]
    assert parsed.refused.rows() == [
        (1, "record", "has 4 fields, the header has 3"),
        (2, "record", "has 2 fields, the header has 3"),
    ]


def test_a_parquet_value_that_does_not_fit_refuses_its_row_only() -> None:
    packed = io.BytesIO()
    pl.DataFrame({"id": [1.0, 2.7, None], "zone": ["a", "b", "c"]}).write_parquet(packed)
    parsed = read_records("a.parquet", packed.getvalue(), {"id": pl.Int64, "zone": pl.String})
    assert parsed.rows.rows() == [(0, 1, "a"), (2, None, "c")]
    assert parsed.refused.rows() == [(1, "id", "'2.7' is no integer")]


@pytest.mark.parametrize(
    "payload", [b"id,zone\n1,north\n2,south\n", b"id,zone,km\n1,north,9\n2,south,far\n"]
)
def test_a_target_may_be_absent_or_wrong_where_rows_are_scored(payload: bytes) -> None:
    parsed = tables().parse_unlabelled("a.csv", payload, {}, "km")
    assert parsed.rows.select("row", "id", "zone", "km").rows() == [
        (0, 1, "north", None),
        (1, 2, "south", None),
    ]
    assert not parsed.refused.height


def test_a_feature_may_not_be_absent_where_rows_are_scored() -> None:
    with pytest.raises(RefusedObject, match="column zone is missing"):
        tables().parse_unlabelled("a.csv", b"id,km\n1,2\n", {}, "km")
