"""Drift of new objects and captured inputs of a real version, in a real store, on Dask."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from models.digests import IntegrityError
from models.images import ImageFeatures, ImageSize
from models.objectives import Objective
from models.tables import TableFeatures
from tasks.captured import Captured, list_captured, tensors
from tasks.drift import Drift, Search, drift
from tasks.fresh import Fresh, clean_fresh, tables
from tasks.refs import Verdict
from tasks.served import Served, served
from tasks.snapshot import raw_prefix
from tasks.store import store
from tests.tasks import samples
from tests.tasks.conftest import Trained, registered, snapshot

LINE = "drifting-trips"
PREFIX = raw_prefix(samples.TRIPS)
LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC)
HOW = Search(minimum_rows=100)


@pytest.fixture
def version(trained: Trained, verdict: Verdict) -> Served:
    """The tiny network for the trips as a registered version."""
    return served(LINE, registered(LINE, trained, verdict).number)[0]


@contextmanager
def landed(**contents: bytes) -> Iterator[None]:
    """Objects beside those of the shared bucket, gone afterwards."""
    keys = {f"{PREFIX}{name}.csv": content for name, content in contents.items()}
    for key, content in keys.items():
        store().put(key, content)
    try:
        yield
    finally:
        for key in keys:
            store().delete(key)


def fresh(trained: Trained, before: str) -> Fresh:
    objective: Objective = samples.MINUTES
    return clean_fresh.bare(samples.TRIPS, objective, PREFIX, snapshot(samples.TRIPS), before)


def searched(version: Served, trained: Trained, found: Fresh, how: Search = HOW) -> Drift:
    captured = list_captured(LINE, version.digest, LONG_AGO)
    return drift.bare(how, version, trained.dataset, found, captured)


def shorter(numbers: range) -> bytes:
    """Trips of which none goes far, and none north."""
    lines = [f"{n},{'east' if n % 2 else 'south'},{n % 40 / 4},{3 * (n % 40) / 4}" for n in numbers]
    return "\n".join(["trip,zone,km,minutes", *lines]).encode()


def test_rows_like_before_do_not_drift_and_others_do(version: Served, trained: Trained) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(same=samples.trips(range(1000, 1300))):
        same = fresh(trained, before)
        assert (same.objects, same.rows) == (1, 300)
        assert pl.concat(tables(same)).get_column("row").to_list() == list(range(300))
        quiet = searched(version, trained, same)
    assert quiet.drifted == ()
    assert {f.name for f in quiet.findings} == {
        "km", "toll", "zone", "answer: minutes", "all features together", "quarantined rows",
    }  # fmt: skip
    with landed(shorter=shorter(range(1000, 1300))):
        found = searched(version, trained, fresh(trained, before))
    assert set(found.drifted) == {
        "km", "toll", "zone", "answer: minutes", "all features together",
    }  # fmt: skip
    assert store().get_content(str(found.observed["plots"]["drift"])).startswith(b"\x89PNG")  # type: ignore[index,call-overload]
    assert found.rows == {"fresh": 300, "captured": 0}


def test_what_the_snapshot_held_is_not_fresh_under_any_name(trained: Trained) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(copy=store().get(f"{PREFIX}0.csv").content):
        assert fresh(trained, before).rows == 0


def test_too_few_rows_are_not_judged(version: Served, trained: Trained) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(shorter=shorter(range(1000, 1099))):
        found = searched(version, trained, fresh(trained, before))
    assert (found.findings, found.unjudged) == ((), ("fresh",))


def test_more_refused_rows_are_drift_too(version: Served, trained: Trained) -> None:
    before = snapshot(samples.TRIPS).digest
    wrong = [f"{number},north,far,1" for number in range(2000, 2060)]
    with landed(same=samples.trips(range(1000, 1300), *wrong)):
        found = searched(version, trained, fresh(trained, before))
    assert found.drifted == ("quarantined rows",)


def capture(version: Served, at: int, part: dict[str, np.ndarray], name: str = "") -> str:
    rows = len(next(iter(part.values())))
    name = name or f"{at}-{rows}-{rows:x}.safetensors"
    key = f"captured/{LINE}/{version.digest}/{name}"
    store().put(key, safetensors.numpy.save(part))
    return key


def test_captured_inputs_are_compared_as_they_were_encoded(
    version: Served, trained: Trained
) -> None:
    features = version.signature().features
    with landed():
        none = fresh(trained, snapshot(samples.TRIPS).digest)
    rows = trained.dataset.signature.features.encode(
        pl.DataFrame({"km": [1.0, 2.0] * 80, "toll": [0.0] * 160, "zone": ["east"] * 160})
    )
    keys = [capture(version, at, rows) for at in (1_000, 2_000)]
    try:
        found = searched(version, trained, none)
        assert found.rows == {"fresh": 0, "captured": 320}
        assert "km" in found.drifted
        assert {f.sample for f in found.findings} == {"captured"}
        since = datetime.datetime.fromtimestamp(1.5, datetime.UTC)
        later = list_captured(LINE, version.digest, since)
        assert later.rows == 160
        part = tensors(later, version.signature(), 40)
        assert 15 < len(part["numbers"]) < 80
        assert features.describe(part).columns == ["km", "toll", "zone"]
        keys.append(capture(version, 3_000, {"numbers": np.zeros((4, 9), np.float32)}))
        broken = list_captured(LINE, version.digest, LONG_AGO)
        with pytest.raises(IntegrityError, match="holds no captured inputs"):
            tensors(broken, version.signature(), 100)
    finally:
        for key in keys:
            store().delete(key)
    assert isinstance(later, Captured)


def test_features_are_described_as_people_know_them(trained: Trained) -> None:
    features = trained.dataset.signature.features
    assert isinstance(features, TableFeatures)
    rows = pl.DataFrame({"km": [1.5, None], "toll": [0.0, 1.0], "zone": ["north", "unheard of"]})
    assert features.describe(features.encode(rows)).rows() == [
        (1.5, 0.0, "north"),
        (None, 1.0, "other"),
    ]
    images = ImageFeatures(size=ImageSize(height=6, width=6), mean=0, deviation=1)
    image = np.zeros((1, 1, 6, 6), np.uint8)
    image[0, 0, :2, 4:] = 90
    [row] = images.describe({"image": image}).rows(named=True)
    assert row["brightness"] == pytest.approx(10)
    assert row["brightness of region 1, 3"] == 90
    assert row["brightness of region 3, 1"] == row["brightness of region 1, 1"] == 0
    assert row["sharpness"] == pytest.approx(2 * 90 * 2 / 30)
