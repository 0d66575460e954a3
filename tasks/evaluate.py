"""Judge a trained network on the held-out rows, with intervals, baselines, slices and plots."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data import Features
from models.digests import canonical_json
from models.objectives import Floats, Objective, Regression
from models.spec import Family
from tasks.dataset import rows, tensors
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import EvaluateJob
from tasks.refs import Dataset, Interval, Report, Weights
from tasks.stage import stage
from tasks.store import content_key, store, table_key

RESAMPLES = 1000
SMALLEST_SLICE = 50


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
    from tasks.baselines import linear, of_text
    from tasks.determinism import deterministic
    from tasks.trainer import predict, restore

    deterministic(job.threads)
    signature = job.dataset.signature
    objective = signature.objective
    names = [spec.name for spec in signature.features.inputs]
    inputs, target = tensors(job.dataset, "test")
    predicted = predict(restore(job.model, job.dataset, job.weights), names, inputs)
    losses = objective.losses(predicted, target)
    emit({"scored": len(target)})
    train_inputs, train_target = tensors(job.dataset, "train")
    name, constant = objective.constant(train_target, len(target))
    baselines = {name: objective.measure(constant, target)}
    if isinstance(objective, Regression):
        baselines["ridge"] = objective.measure(
            linear(signature.features, train_inputs, train_target, inputs), target
        )
    for name, others in of_text(job.dataset, train_inputs, train_target, inputs):
        baselines[name] = objective.measure(others, target)
    metrics = intervals(objective, losses, job.confidence)
    scored = store().put_table(pl.DataFrame(losses))
    slices = dict(_slices(job.dataset, objective, losses, target))
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
        for title, png in plots.draw(objective, predicted, target, job.weights)
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


def _slices(
    dataset: Dataset, objective: Objective, losses: dict[str, Floats], target: NDArray[Any]
) -> Any:
    for name, chosen in groups(
        dataset.signature.features, objective, rows(dataset, "test"), target
    ):
        if np.count_nonzero(chosen) >= SMALLEST_SLICE:
            part = objective.metrics({n: values[chosen] for n, values in losses.items()})
            yield name, {n: float(v) for n, v in part.items()}
