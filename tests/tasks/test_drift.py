"""Drift of new objects and captured inputs of a real version, in a real store, on Dask."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from onnx import TensorProto, helper

from models.digests import IntegrityError, Manifest
from models.images import ImageFeatures, ImageSize
from models.objectives import Objective
from models.signature import MODEL_FILE, SIGNATURE_FILE
from models.tables import TableFeatures
from tasks.captured import Captured, list_captured, tensors
from tasks.drift import Drift, DriftJob, Search, drift, measure
from tasks.fresh import Fresh, clean_fresh, tables
from tasks.promotion import version_folder
from tasks.served import Served
from tasks.snapshot import raw_prefix
from tasks.store import store
from tests.deployments.serving.versions import network
from tests.tasks import samples
from tests.tasks.conftest import Made, snapshot

LINE = "drifting-trips"
PREFIX = raw_prefix(samples.TRIPS)
LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC)
HOW = Search(minimum_rows=100)


@pytest.fixture
def version(made: Made) -> Served:
    """What the made-up trips really follow, 3 km + 5 toll, as a version that can be asked."""
    real, integer = TensorProto.FLOAT, TensorProto.INT64
    model = network(
        [
            helper.make_node("MatMul", ["numbers", "w"], ["column"]),
            helper.make_node("Flatten", ["column"], ["flat"], axis=0),
            helper.make_node("Squeeze", ["flat", "axis"], ["prediction"]),
        ],
        [
            helper.make_tensor_value_info("numbers", real, ["n", 2]),
            helper.make_tensor_value_info("categories", integer, ["n", 1]),
        ],
        [helper.make_tensor_value_info("prediction", real, ["n"])],
        w=np.array([[3.0], [5.0]], np.float32),
        axis=np.array([0], np.int64),
    )
    files = {
        MODEL_FILE: model,
        SIGNATURE_FILE: made.trips.signature.model_dump_json().encode(),
    }
    manifest = Manifest.of(files)
    for name, content in files.items():
        store().put(version_folder(LINE, manifest.digest) + name, content)
    return Served(line=LINE, number=1, digest=manifest.digest, manifest=manifest)


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


def fresh(made: Made, before: str) -> Fresh:
    objective: Objective = samples.MINUTES
    return clean_fresh.bare(samples.TRIPS, objective, PREFIX, snapshot(samples.TRIPS), before)


def searched(version: Served, made: Made, found: Fresh, how: Search = HOW) -> Drift:
    captured = list_captured(LINE, version.digest, LONG_AGO)
    job = DriftJob(how=how, served=version, dataset=made.trips, fresh=found, captured=captured)
    return measure(job, lambda _: None)


def shorter(numbers: range) -> bytes:
    """Trips of which none goes far, and none north."""
    lines = [f"{n},{'east' if n % 2 else 'south'},{n % 40 / 4},{3 * (n % 40) / 4}" for n in numbers]
    return "\n".join(["trip,zone,km,minutes", *lines]).encode()


def test_rows_like_before_do_not_drift_and_others_do(version: Served, made: Made) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(same=samples.trips(range(1000, 1300))):
        same = fresh(made, before)
        assert (same.objects, same.rows) == (1, 300)
        assert pl.concat(tables(same)).get_column("row").to_list() == list(range(300))
        quiet = searched(version, made, same)
    assert quiet.drifted == ()
    assert {f.name for f in quiet.findings} == {
        "km", "toll", "zone", "answer: minutes", "all features together", "quarantined rows",
    }  # fmt: skip
    with landed(shorter=shorter(range(1000, 1300))):
        captured = list_captured(LINE, version.digest, LONG_AGO)
        # On a worker, as the flow does it.
        found = drift.bare(HOW, version, made.trips, fresh(made, before), captured)
    assert set(found.drifted) == {
        "km", "toll", "zone", "answer: minutes", "all features together",
    }  # fmt: skip
    assert store().get_content(str(found.observed["plots"]["drift"])).startswith(b"\x89PNG")  # type: ignore[index,call-overload]
    assert found.rows == {"fresh": 300, "captured": 0}


def test_what_the_snapshot_held_is_not_fresh_under_any_name(made: Made) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(copy=store().get(f"{PREFIX}0.csv").content):
        assert fresh(made, before).rows == 0


def test_too_few_rows_are_not_judged(version: Served, made: Made) -> None:
    before = snapshot(samples.TRIPS).digest
    with landed(shorter=shorter(range(1000, 1099))):
        found = searched(version, made, fresh(made, before))
    assert (found.findings, found.unjudged) == ((), ("fresh",))


def test_more_refused_rows_are_drift_too(version: Served, made: Made) -> None:
    before = snapshot(samples.TRIPS).digest
    wrong = [f"{number},north,far,1" for number in range(2000, 2060)]
    with landed(same=samples.trips(range(1000, 1300), *wrong)):
        found = searched(version, made, fresh(made, before))
    assert found.drifted == ("quarantined rows",)


def capture(version: Served, at: int, part: dict[str, np.ndarray], name: str = "") -> str:
    rows = len(next(iter(part.values())))
    name = name or f"{at}-{rows}-{rows:x}.safetensors"
    key = f"captured/{LINE}/{version.digest}/{name}"
    store().put(key, safetensors.numpy.save(part))
    return key


def test_captured_inputs_are_compared_as_they_were_encoded(version: Served, made: Made) -> None:
    features = version.signature().features
    with landed():
        none = fresh(made, snapshot(samples.TRIPS).digest)
    rows = made.trips.signature.features.encode(
        pl.DataFrame({"km": [1.0, 2.0] * 80, "toll": [0.0] * 160, "zone": ["east"] * 160})
    )
    keys = [capture(version, at, rows) for at in (1_000, 2_000)]
    try:
        found = searched(version, made, none)
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


def test_features_are_described_as_people_know_them(made: Made) -> None:
    features = made.trips.signature.features
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
