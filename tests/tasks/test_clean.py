import io
from collections import Counter
from collections.abc import Callable, Iterable

import polars as pl
import pytest

from models.splits import ByHash
from tasks import cluster
from tasks.assemble import CleaningError
from tasks.clean import WHOLE_OBJECT, clean
from tasks.dataset import manifest, rows
from tasks.refs import Dataset
from tasks.snapshot import raw_prefix
from tasks.store import MissingError, store
from tests.conftest import new_bucket
from tests.tasks import samples
from tests.tasks.conftest import cleaned, snapshot
from tests.tasks.samples import MINUTES, SHAPE, SHAPES, TRIPS, trip, trips

Workers = Callable[[str], None]
PREFIX = raw_prefix(TRIPS)
NOT_A_NUMBER = "900,north,far,10"
OUT_OF_RANGE = "901,north,101,10"
NOBODY = ",north,1,10"
NO_TARGET = "902,south,1,NA"
INFINITE = "903,south,inf,10"
OBJECTS = {
    "a.csv": trips(range(80), NOT_A_NUMBER, OUT_OF_RANGE, trip(3), NOBODY, NO_TARGET, INFINITE),
    "b.csv": trips(range(70, 120), trip(3), trip(118)),
    "c.csv": trips(range(120, 160)),
    "copy-of-c.csv": trips(range(120, 160)),
    "empty.csv": b"",
    "notes.txt": b"nothing to see",
    "other.csv": b"trip,zone\n1,north\n",
}


def land(objects: Iterable[tuple[str, bytes]]) -> None:
    store().put(PREFIX + "reference/zones.csv", samples.ZONES_FILE)
    for name, content in objects:
        store().put(PREFIX + name, content)


def everything(dataset: Dataset) -> pl.DataFrame:
    return pl.concat([rows(dataset, subset) for subset in ("train", "validation", "test")])


def refused(dataset: Dataset) -> dict[tuple[str, str], int]:
    return {(r.field, r.reason): r.rows for r in dataset.refused}


def test_every_record_is_a_row_or_in_quarantine(workers: Workers, bucket: str) -> None:
    land(OBJECTS.items())
    dataset = cleaned(TRIPS, MINUTES)
    assert sum(dataset.rows.values()) == 160
    landed = sorted(float(trip(number).split(",")[2]) for number in range(160))
    assert sorted(everything(dataset)["km"]) == landed
    in_objects: Counter[str] = Counter()
    for refusal in dataset.refused:
        in_objects[refusal.field] += refusal.rows
    del in_objects[WHOLE_OBJECT]
    # 86 records in a, 52 in b, 40 in c.
    assert sum(in_objects.values()) == 86 + 52 + 40 - 160
    # 3 and 118 repeat in their own object; 70 to 79 and 3 repeat an earlier object's.
    assert in_objects == {"km": 3, "trip": 1, "minutes": 1, "record": 13}
    by_reason = {r.reason: r.rows for r in dataset.refused if r.field == "record"}
    assert by_reason == {"repeats an earlier row": 2, "repeats a row of an earlier object": 11}


def test_an_object_that_is_no_data_is_named_and_loses_no_other(
    workers: Workers, bucket: str
) -> None:
    land(OBJECTS.items())
    reasons = [r.reason for r in cleaned(TRIPS, MINUTES).refused if r.field == WHOLE_OBJECT]
    assert sorted(reasons) == [
        "copy-of-c.csv repeats c.csv",
        "empty.csv: the object is empty",
        "notes.txt does not end in .csv or .parquet",
        "other.csv: column km, minutes is missing",
    ]


def test_quarantine_names_object_row_and_reason(workers: Workers, bucket: str) -> None:
    land(OBJECTS.items())
    by_name = {p.name: p for p in manifest(cleaned(TRIPS, MINUTES)).partitions}
    found = store().get_table(by_name["a.csv"].refused)
    where = {row: (field, reason) for row, field, reason in found.iter_rows()}
    assert found.columns == ["row", "field", "reason"]
    assert {row: field for row, (field, _) in where.items()} == {
        80: "km", 81: "km", 82: "record", 83: "trip", 84: "minutes", 85: "km",
    }  # fmt: skip
    assert "far" in where[80][1]
    assert where[81][1] == where[85][1] == "not within 0 to 100 km"
    assert (where[83][1], where[84][1]) == ("missing", "missing")
    assert store().get_table(by_name["b.csv"].refused)["row"].to_list() == [51]


def test_the_dataset_is_the_same_in_any_landing_order_and_with_any_workers(
    workers: Workers, bucket: str
) -> None:
    land(OBJECTS.items())
    first = cleaned(TRIPS, MINUTES)
    client = cluster.client()
    local = client.cluster
    local.scale(1)  # type: ignore[union-attr]
    local.wait_for_workers(1)  # type: ignore[union-attr]
    try:
        with new_bucket() as other:
            workers(other)
            land(list(OBJECTS.items())[:1])
            cleaned(TRIPS, MINUTES)
            land(reversed(OBJECTS.items()))
            alone = cleaned(TRIPS, MINUTES)
    finally:
        local.scale(2)  # type: ignore[union-attr]
        client.wait_for_workers(2)
        workers(bucket)
    assert alone.digest == first.digest
    assert alone.signature == first.signature


def test_a_new_object_costs_only_itself(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(80))), ("b.csv", trips(range(80, 160)))])
    first = cleaned(TRIPS, MINUTES)
    assert first.observed == {"cleaned": 2, "reused": 0}
    land([("c.csv", trips(range(160, 200)))])
    second = cleaned(TRIPS, MINUTES)
    assert second.observed == {"cleaned": 1, "reused": 2}
    assert (sum(first.rows.values()), sum(second.rows.values())) == (160, 200)
    again = cleaned(TRIPS, MINUTES)
    assert again.observed == {"cleaned": 0, "reused": 3}
    assert again.digest == second.digest


def test_an_object_that_lands_before_others_takes_their_duplicates(
    workers: Workers, bucket: str
) -> None:
    land([("b.csv", trips(range(100)))])
    cleaned(TRIPS, MINUTES)
    land([("a.csv", trips(range(90, 140)))])
    grown = cleaned(TRIPS, MINUTES)
    assert grown.observed["reused"] == 1
    with new_bucket() as other:
        workers(other)
        land([("a.csv", trips(range(90, 140))), ("b.csv", trips(range(100)))])
        assert cleaned(TRIPS, MINUTES).digest == grown.digest
    assert sum(grown.rows.values()) == 140


def test_rows_keep_their_split_when_data_grows(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100)))])
    before = everything(cleaned(TRIPS, MINUTES)).select("identity", "split")
    land([("0.csv", trips(range(200, 260))), ("b.csv", trips(range(100, 160)))])
    after = everything(cleaned(TRIPS, MINUTES)).select("identity", "split")
    both = before.join(after, "identity", suffix="_after")
    assert both.height == 100
    assert both["split"].equals(both["split_after"], check_names=False)


def test_a_changed_reference_table_cleans_everything_again(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100)))])
    first = cleaned(TRIPS, MINUTES)
    store().put(PREFIX + "reference/zones.csv", b"zone,toll\neast,0\nnorth,0\nsouth,1\n")
    second = cleaned(TRIPS, MINUTES)
    assert second.observed == {"cleaned": 1, "reused": 0}
    assert second.digest != first.digest


def test_statistics_are_of_the_training_rows_only(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100))), ("b.csv", trips(range(50, 150)))])
    dataset = cleaned(TRIPS, MINUTES)
    train = rows(dataset, "train")
    signature = dataset.signature
    assert dataset.rows["train"] == train.height
    assert signature.features.numbers[0].mean == pytest.approx(train["km"].mean())  # type: ignore[attr-defined]
    assert signature.objective.mean == pytest.approx(train["minutes"].mean())  # type: ignore[attr-defined]


def test_an_object_changed_after_the_snapshot_is_an_error(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100))), ("b.csv", trips(range(100, 200)))])
    seen = snapshot(TRIPS)
    land([("b.csv", trips(range(100, 199)))])
    with pytest.raises(MissingError, match=r"b\.csv was overwritten"):
        cleaned(TRIPS, MINUTES, seen)


def test_an_object_removed_after_the_snapshot_is_an_error(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100)))])
    seen = snapshot(TRIPS)
    store().delete(PREFIX + "a.csv")
    with pytest.raises(MissingError, match=r"a\.csv: there is no such object"):
        cleaned(TRIPS, MINUTES, seen)


def test_parquet_and_csv_objects_go_together(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(60)))])
    packed = io.BytesIO()
    pl.read_csv(trips(range(50, 110))).write_parquet(packed)
    land([("b.parquet", packed.getvalue())])
    assert sum(cleaned(TRIPS, MINUTES).rows.values()) == 110


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trip,zone\n1,a\n", "no row is left after cleaning .*column km, minutes is missing"),
        (trips([], OUT_OF_RANGE), "no row is left after cleaning .*km: not within"),
        (trips(range(1)), "no row fell into the .* split: land more data"),
        (trips([], *(f"{i},north,NA,7" for i in range(90))), "km has no value in any training row"),
    ],
    ids=["unreadable", "implausible", "one-row", "empty-column"],
)
def test_data_that_cannot_be_used_says_why(
    workers: Workers, bucket: str, content: bytes, message: str
) -> None:
    land([("a.csv", content)])
    with pytest.raises(CleaningError, match=message):
        cleaned(TRIPS, MINUTES)


def test_a_missing_reference_says_what_to_land(workers: Workers, bucket: str) -> None:
    store().put(PREFIX + "a.csv", trips(range(100)))
    with pytest.raises(CleaningError, match=r"reference/zones\.csv is missing: land"):
        cleaned(TRIPS, MINUTES)


def test_a_class_without_rows_is_an_error(workers: Workers, bucket: str) -> None:
    store().put("raw/shapes/a.tar", samples.shapes(range(0, 90, 3)))
    with pytest.raises(CleaningError, match="no training row has the class dot, pole"):
        cleaned(SHAPES, SHAPE)


def test_images_are_accounted_for_too(workers: Workers, bucket: str) -> None:
    store().put("raw/shapes/a.tar", samples.shapes(range(100)))
    store().put("raw/shapes/b.tar", samples.shapes(range(90, 130)))
    store().put("raw/shapes/cut.tar", samples.shapes(range(200, 220))[:5000])
    store().put("raw/shapes/blob/1.png", samples.shapes(range(1))[512:-4096])
    dataset = cleaned(SHAPES, SHAPE)
    assert sum(dataset.rows.values()) == 130
    found = refused(dataset)
    assert found.pop(("record", "repeats a row of an earlier object")) == 10
    assert len(found) == 2
    assert any("cut.tar: not a whole tar archive" in reason for _, reason in found)


def test_another_split_is_another_dataset(workers: Workers, bucket: str) -> None:
    land([("a.csv", trips(range(100)))])
    other = TRIPS.model_copy(update={"split": ByHash(test=0.5, validation=0.2)})
    seen = snapshot(TRIPS)
    first, second = (clean.bare(data, MINUTES, PREFIX, seen) for data in (TRIPS, other))
    assert first.digest != second.digest
    assert second.observed == {"cleaned": 1, "reused": 0}
