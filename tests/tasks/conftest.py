"""Cleaned sample data, once for the session, in a bucket of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from models.data import Data
from models.objectives import Objective
from tasks.clean import clean
from tasks.refs import Dataset, Snapshot
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.store import BUCKET_SETTING, store
from tests.conftest import environment, new_bucket, tell_workers
from tests.tasks import samples


class Made(NamedTuple):
    """What is in the bucket of `made`."""

    bucket: str
    trips: Dataset
    shapes: Dataset


def snapshot(data: Data) -> Snapshot:
    """A snapshot of what is in the bucket now."""
    return take_snapshot.bare(raw_prefix(data), list_objects(data))


def cleaned(data: Data, objective: Objective, seen: Snapshot | None = None) -> Dataset:
    """The data in the bucket, cleaned on Dask."""
    return clean.bare(data, objective, raw_prefix(data), seen or snapshot(data))


@pytest.fixture(scope="session")
def _made(dask_service: None) -> Made:
    del dask_service
    with new_bucket() as bucket:
        tell_workers(bucket)
        store().put("raw/trips/reference/zones.csv", samples.ZONES_FILE)
        for part in range(3):
            numbers = range(part * 100, part * 100 + 100)
            store().put(f"raw/trips/{part}.csv", samples.trips(numbers))
            store().put(f"raw/shapes/{part}.tar", samples.shapes(numbers))
        return Made(
            bucket,
            cleaned(samples.TRIPS, samples.MINUTES),
            cleaned(samples.SHAPES, samples.SHAPE),
        )


@pytest.fixture
def made(_made: Made) -> Iterator[Made]:
    """300 cleaned trips and 300 cleaned shapes; the bucket is shared, so add and do not change."""
    with environment(**{BUCKET_SETTING: _made.bucket}):
        tell_workers(_made.bucket)
        yield _made
