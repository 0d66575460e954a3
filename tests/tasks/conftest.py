"""Sample data cleaned and a network trained on it, once for the session, in a bucket of its own."""

import json
import platform
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import orjson
import pytest
from prefect.serializers import JSONSerializer

from models import mlp
from models.data import Data
from models.digests import json_digest
from models.objectives import Objective
from models.spec import Budget, Gate, Line, Optimizer, Training
from models.version import Recipe, StageIdentity, StageRecord
from tasks.clean import clean
from tasks.gate import judge
from tasks.jobs import CompressJob, EvaluateJob, GateJob, TrainJob
from tasks.recipe import DETERMINED, recipe
from tasks.refs import Artifact, Dataset, Ref, Report, Snapshot, Verdict, Version, Weights
from tasks.register import register
from tasks.results import StageResults
from tasks.scoring import Scoring, scoring
from tasks.served import served
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.stage import StageRun
from tasks.store import BUCKET_SETTING, store
from tests.conftest import environment, new_bucket, tell_workers
from tests.tasks import samples
from tests.tasks.scored import LINE

_prefixes = (f"incoming/{number}/" for number in count())


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


class Trained(NamedTuple):
    """A network for the trips of `made`, judged and compressed."""

    dataset: Dataset
    weights: Weights
    report: Report
    artifact: Artifact


MODEL = mlp.Spec(size="tiny")
TRAINING = Training(epochs=25, batch_size=16, optimizer=Optimizer(lr=0.02), device="cpu")
ANY_BUDGET = Budget(quality_loss=0.5, slowdown=100)


def compress_job(dataset: Dataset, weights: Weights, budget: Budget = ANY_BUDGET) -> CompressJob:
    """The job that compresses a network of `MODEL`."""
    return CompressJob(
        model=MODEL, training=TRAINING, budget=budget, dataset=dataset, weights=weights
    )


@pytest.fixture(scope="session")
def _trained(_made: Made) -> Trained:
    from tasks.compress import search
    from tasks.evaluate import measure
    from tasks.trainer import fit

    dataset = _made.trips
    with environment(**{BUCKET_SETTING: _made.bucket}):
        fitting = TrainJob(
            model=MODEL, training=TRAINING, dataset=dataset, checkpoint=json_digest("trained")
        )
        weights = fit(fitting, lambda _: None)
        judging = EvaluateJob(
            model=MODEL, dataset=dataset, weights=weights, threads=1, confidence=0.9
        )
        report = measure(judging, lambda _: None)
        artifact = search(compress_job(dataset, weights), lambda _: None)
    return Trained(dataset, weights, report, artifact)


@pytest.fixture
def trained(made: Made, _trained: Trained) -> Trained:
    """A tiny network for the trips, in the bucket of `made`."""
    del made
    return _trained


def line_of(name: str, seed: int = 0) -> Line:
    """A line of the trips' data and network."""
    return Line(
        name=name,
        title=name,
        data=samples.TRIPS,
        objective=samples.MINUTES,
        model=MODEL,
        training=Training(seed=seed, device="cpu"),
    )


def recipe_of(name: str, trained: Trained, seed: int = 0) -> Recipe:
    """The recipe of a version of line `name` that stands for the trips' network."""
    line = line_of(name, seed)
    digests = (trained.dataset, trained.weights, trained.report, trained.artifact)
    runs = []
    for stage, ref in zip(DETERMINED, digests, strict=True):
        known = StageIdentity(
            stage=stage,
            arguments={"seed": seed},
            code={},
            distributions={},
            python=platform.python_version(),
            libc=" ".join(platform.libc_ver()),
            machine=platform.machine(),
        ).model_dump(mode="json")
        runs.append(
            StageRun(
                name=stage,
                key=json_digest(known),
                digest=ref.digest,
                cached=False,
                seconds=0.0,
                observed={},
                fingerprint=ref.fingerprint,
                identity=known,
            )
        )
    return recipe(line, snapshot(samples.TRIPS), trained.artifact, runs)


@pytest.fixture
def verdict(trained: Trained) -> Verdict:
    """The gate's word on the tiny network, without a champion."""
    job = GateJob(
        gate=Gate(),
        budget=Budget(quality_loss=0.9),
        dataset=trained.dataset,
        artifact=trained.artifact,
        report=trained.report,
        champion=None,
    )
    return judge(job, lambda _: None)


def keep(record: StageRecord, output: Ref) -> None:
    """Have the store hold what the stage gave, as Prefect leaves it there."""
    data = {"__class__": f"tasks.refs.{type(output).__name__}", "data": output.model_dump()}
    metadata = {"serializer": JSONSerializer().model_dump()}
    content = orjson.dumps({"metadata": metadata, "result": json.dumps(data)})
    StageResults().write_path(record.key, content)


def registered(name: str, trained: Trained, verdict: Verdict, seed: int = 0) -> Version:
    """The tiny network as a signed version of line `name`."""
    return register.bare(
        recipe_of(name, trained, seed),
        raw_prefix(samples.TRIPS),
        snapshot(samples.TRIPS),
        trained.artifact,
        trained.report,
        verdict,
    )


@pytest.fixture
def version(trained: Trained, verdict: Verdict) -> Version:
    """The tiny network for the trips as a registered version."""
    return registered(LINE, trained, verdict)


@pytest.fixture
def how(version: Version) -> Scoring:
    found = scoring(*served(LINE, version.number))
    assert found.output == f"scored/{LINE}/{version.digest[:16]}/"
    return found


@pytest.fixture
def prefix() -> str:
    """A prefix of this test's own; the bucket is shared."""
    return next(_prefixes)
