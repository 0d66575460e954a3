import numpy as np
import polars as pl
import pytest

from tasks.dataset import chunks, manifest, partitions, rows, spread, tensors, without
from tasks.store import MissingError, store, table_key
from tests.tasks.conftest import Made


def test_the_splits_are_all_rows_once(made: Made) -> None:
    parts = {name: rows(made.trips, name) for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert {name: part.height for name, part in parts.items()} == made.trips.rows
    identities = pl.concat(parts.values())["identity"]
    assert identities.n_unique() == len(identities) == 300


def test_rows_come_in_the_order_of_the_objects(made: Made) -> None:
    names = [p.name for p in manifest(made.trips).partitions]
    assert names == sorted(names)
    tables = list(partitions(made.trips, "train"))
    assert len(tables) == 3
    assert all(table["row"].is_sorted() for table in tables)
    assert pl.concat(tables).equals(rows(made.trips, "train"))


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_chunks_are_the_rows_in_order_whatever_the_partitions_are(made: Made, size: int) -> None:
    found = list(chunks(made.trips, "test", size))
    whole = rows(made.trips, "test")
    assert pl.concat(found).equals(whole)
    assert {part.height for part in found[:-1]} <= {size}
    assert 1 <= found[-1].height <= size


def test_rows_are_spread_evenly_over_all_partitions(made: Made) -> None:
    whole = rows(made.trips, "train")
    assert spread(made.trips, "train", whole.height).equals(whole)
    for most in (whole.height - 1, 50, 7):
        found = spread(made.trips, "train", most)
        stride = -(-whole.height // most)
        assert found.equals(whole.gather_every(stride))
        assert most / 2 <= found.height <= most


def test_tensors_are_the_encoded_rows(made: Made) -> None:
    for dataset in (made.trips, made.shapes):
        signature = dataset.signature
        inputs, target = tensors(dataset, "test")
        table = rows(dataset, "test")
        for name, expected in signature.features.encode(table).items():
            np.testing.assert_array_equal(inputs[name], expected)
        np.testing.assert_array_equal(target, signature.objective.encode(table))
        for spec in signature.features.inputs:
            spec.check(inputs[spec.name])


def test_the_manifest_says_what_the_dataset_is(made: Made) -> None:
    found = manifest(made.trips)
    assert found.signature == made.trips.signature
    assert set(found.splits.values()) == {"train", "validation", "test"}
    assert sum(sum(p.labels.values()) for p in found.partitions) == 300


@pytest.mark.parametrize(("positions", "left"), [((), [5, 6, 7]), ((1,), [5, 7]), ((0, 1, 2), [])])
def test_without_takes_rows_away(positions: tuple[int, ...], left: list[int]) -> None:
    assert without(pl.DataFrame({"a": [5, 6, 7]}), positions)["a"].to_list() == left


def test_a_lost_partition_is_an_error(made: Made) -> None:
    lost = manifest(made.trips).partitions[1].rows
    content = store().get(table_key(lost)).content
    store().delete(table_key(lost))
    try:
        with pytest.raises(MissingError, match=lost):
            rows(made.trips, "train")
    finally:
        store().put(table_key(lost), content)
