"""Judge a trained network on the held-out rows, with intervals, baselines, slices and plots.

Rows are read, answered and scored a few at a time; what stays is their scores, a few numbers a row.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data import Features
from models.digests import canonical_json
from models.objectives import Floats, Objective, Regression
from models.spec import Family
from tasks.dataset import chunks, spread
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import EvaluateJob
from tasks.refs import Dataset, Interval, Report, Weights
from tasks.stage import stage
from tasks.store import content_key, store, table_key

RESAMPLES = 1000
SMALLEST_SLICE = 50
# Megabytes of encoded training rows that baselines learn from.
LEARNT_FROM = 64


@stage("evaluate")
def evaluate(
    model: Family, dataset: Dataset, weights: Weights, confidence: float, profile: Profile,
    threads: int,
) -> Report:  # fmt: skip
    """The quality of the network on the test rows; raises IsolatedError."""
    job = EvaluateJob(
        model=model, dataset=dataset, weights=weights, threads=threads, confidence=confidence
    )
    return isolated(
        "tasks.evaluate:measure", job, Report, stage="evaluate", profile=profile, threads=threads
    )


def measure(job: EvaluateJob, emit: Emit) -> Report:
    """In the isolated process: predict the test rows, score them, and store the evidence."""
    from tasks import plots
    from tasks.baselines import fitted
    from tasks.batches import Stored, capacity
    from tasks.determinism import deterministic
    from tasks.trainer import EVALUATION_BATCH, predict, restore

    deterministic(job.threads)
    signature, dataset = job.dataset.signature, job.dataset
    features, objective = signature.features, signature.objective
    most = capacity(Stored(dataset, "train"), LEARNT_FROM)
    network = restore(job.model, dataset, job.weights)
    names = [spec.name for spec in features.inputs]
    fits = dict(fitted(signature, spread(dataset, "train", most)))
    ours, chosen, answers = Columns(), Columns(), plots.Answers(objective)
    others = {name: Columns() for name in fits}
    for table in chunks(dataset, "test", objective.at_once(EVALUATION_BATCH)):
        inputs, target = features.encode(table), objective.encode(table)
        predicted = predict(network, names, inputs)
        ours.add(objective.losses(predicted, target))
        answers.add(predicted, target)
        for name, fit in fits.items():
            others[name].add(objective.losses(fit(table, inputs), target))
        chosen.add(dict(groups(features, objective, table, target)))
    losses = ours.whole()
    emit({"scored": dataset.rows["test"]})
    baselines = {name: _floats(objective.metrics(of.whole())) for name, of in others.items()}
    metrics = intervals(objective, losses, job.confidence)
    scored = store().put_table(pl.DataFrame(losses))
    slices = {
        name: _floats(objective.metrics({n: values[rows] for n, values in losses.items()}))
        for name, rows in chosen.whole().items()
        if np.count_nonzero(rows) >= SMALLEST_SLICE
    }
    content = canonical_json(
        {
            "metrics": {n: m.model_dump() for n, m in metrics.items()},
            "baselines": baselines,
            "slices": slices,
            "losses": scored,
        }
    )
    digest = store().put_content(content)
    drawn = {
        title: store().put_content(png)
        for title, png in plots.draw(objective, answers, job.weights)
    }
    return Report(
        digest=digest,
        stored=(content_key(digest), table_key(scored)),
        fingerprint=fingerprint(job.model, signature),
        observed={"plots": dict(drawn)},
        metrics=metrics,
        baselines=baselines,
        slices=slices,
        losses=scored,
    )


def intervals(
    objective: Objective, losses: dict[str, Floats], confidence: float
) -> dict[str, Interval]:
    """Every metric with its bootstrap percentile interval (Efron 1979), from per-row losses [n]."""
    names = list(losses)
    found = objective.metrics(losses)

    def statistic(*samples: Floats, axis: int = -1) -> NDArray[Any]:
        del axis
        return np.stack(list(objective.metrics(dict(zip(names, samples, strict=True))).values()))

    low, high = resampled(statistic, tuple(losses.values()), confidence)
    return {
        name: Interval(value=float(value), low=float(low[i]), high=float(high[i]))
        for i, (name, value) in enumerate(found.items())
    }


def resampled(
    statistic: Any, samples: tuple[Floats, ...], confidence: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Low and high end of the bootstrap percentile interval of paired samples, each [n]."""
    found = bootstrapped(statistic, samples, confidence).confidence_interval
    return np.atleast_1d(found.low), np.atleast_1d(found.high)


def bootstrapped(
    statistic: Any, samples: tuple[Floats, ...], confidence: float, resamples: int = RESAMPLES
) -> Any:
    """SciPy's bootstrap of paired samples, each [n]: percentile interval and standard error."""
    from scipy.stats import bootstrap

    return bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        # Memory: a batch of resamples is this many copies of every sample.
        batch=max(1, 2_000_000 // len(samples[0])),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )


def groups(
    features: Features, objective: Objective, table: pl.DataFrame, target: NDArray[Any]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Name and rows, bool [n], of every slice: those of the features, and every class."""
    found = list(features.slices(table))
    if not isinstance(objective, Regression):
        found += [
            (f"{objective.target}={label}", target == index)
            for index, label in enumerate(getattr(objective, "labels", ()))
        ]
    return found


class Columns:
    """Values of rows by name, [n] each, put together piece by piece."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = defaultdict(list)

    def add(self, part: Mapping[str, NDArray[Any]]) -> None:
        for name, values in part.items():
            self._parts[name].append(values)

    def whole(self) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
