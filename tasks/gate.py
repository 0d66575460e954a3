"""The gate: may this version serve? Judged on the test rows, as it would be served.

*refuse*: a floor is broken, or compression cost more than its budget. *hold*: sound, but a paired
bootstrap finds it worse than the champion by more than the line's margin. *promote*: otherwise.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.digests import canonical_json
from models.objectives import Floats, Objective
from models.signature import MODEL_FILE, SIGNATURE_FILE, Signature
from models.spec import Budget, Gate
from tasks.compress import UNCOMPRESSED
from tasks.dataset import rows
from tasks.evaluate import resampled
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import GateJob
from tasks.refs import Artifact, Champion, Comparison, Dataset, Interval, Report, Verdict
from tasks.stage import stage
from tasks.store import content_key, store


@stage("gate")
def decide(
    gate: Gate, budget: Budget, dataset: Dataset, artifact: Artifact, report: Report,
    champion: Champion | None, profile: Profile, threads: int,
) -> Verdict:  # fmt: skip
    """Promote, hold or refuse, with the evidence."""
    job = GateJob(
        gate=gate,
        budget=budget,
        dataset=dataset,
        artifact=artifact,
        report=report,
        champion=champion,
    )
    return isolated(
        "tasks.gate:judge", job, Verdict, stage="gate", profile=profile, threads=threads
    )


def judge(job: GateJob, emit: Emit) -> Verdict:
    """In the isolated process: score the served forms on the same rows and decide."""
    objective = job.dataset.signature.objective
    losses = _losses(job, job.artifact.manifest)
    metrics = {name: float(value) for name, value in objective.metrics(losses).items()}
    emit({"scored": len(next(iter(losses.values())))})
    undefined = [f"{name} is {value}" for name, value in metrics.items() if not np.isfinite(value)]
    if undefined:
        raise ValueError(
            f"{', '.join(undefined)} on the test rows: the served model answers with no numbers"
        )
    refused = [*_broken_floors(job.gate, objective, metrics), *_over_budget(job, metrics)]
    comparison, obstacle = None, None
    if job.champion is not None:
        obstacle = _obstacle(job, job.champion)
        if obstacle is None:
            comparison = _compare(job, job.champion, objective, losses, metrics)
    decision, reasons = "promote", []
    if refused:
        decision, reasons = "refuse", refused
    elif obstacle is not None:
        decision = job.gate.incomparable
        reasons = [f"the champion cannot be scored on these rows ({obstacle}); gate.incomparable"]
    elif comparison is not None and comparison.worse_by.low > job.gate.margin:
        decision = "hold"
        reasons = [
            f"worse than the champion by {comparison.worse_by.value:.2%}"
            f" (at least {comparison.worse_by.low:.2%} with {job.gate.confidence:.0%} confidence,"
            f" margin {job.gate.margin:.2%})"
        ]
    else:
        reasons = _why_promoted(job.gate, comparison)
    content = canonical_json(
        {
            "decision": decision,
            "reasons": reasons,
            "metrics": metrics,
            "comparison": comparison.model_dump() if comparison else None,
            "artifact": job.artifact.digest,
            "dataset": job.dataset.digest,
        }
    )
    digest = store().put_content(content)
    return Verdict.model_validate(
        {
            "digest": digest,
            "stored": (content_key(digest),),
            "decision": decision,
            "reasons": tuple(reasons),
            "metrics": metrics,
            "comparison": comparison,
        }
    )


def _losses(job: GateJob, manifest: Any) -> dict[str, Floats]:
    """Per-row losses on the test rows of a served model, with its own preprocessing."""
    from tasks.inference import predict, session

    signature = Signature.model_validate_json(store().get_file(manifest, SIGNATURE_FILE))
    table = rows(job.dataset, "test")
    model = session(store().get_file(manifest, MODEL_FILE))
    predicted = predict(model, signature.features.encode(table))
    return signature.objective.losses(predicted, signature.objective.encode(table))


def _broken_floors(gate: Gate, objective: Objective, metrics: dict[str, float]) -> list[str]:
    broken = []
    for name, floor in gate.floors.items():
        if name not in metrics:
            known = ", ".join(metrics)
            raise ValueError(f"gate.floors names {name!r}; this line's metrics are {known}")
        higher = name == objective.primary.name and objective.primary.better == "higher"
        ok = metrics[name] >= floor if higher else metrics[name] <= floor
        if not ok:
            broken.append(f"{name} is {metrics[name]:.4g}, the floor is {floor:.4g}")
    return broken


def _over_budget(job: GateJob, metrics: dict[str, float]) -> list[str]:
    cost: Any = job.artifact.observed.get("cpu_microseconds") or {}
    chosen, plain = cost.get(job.artifact.chosen, {}), cost.get(UNCOMPRESSED, {})
    slow = [b for b, spent in chosen.items() if spent > job.budget.slowdown * plain[b]]
    if slow:
        return [
            f"{job.artifact.chosen} takes {chosen[slow[0]]:.0f} us of CPU time at batch {slow[0]},"
            f" uncompressed {plain[slow[0]]:.0f} us: over budget.slowdown; to try another form, set"
            " budget.exclude"
        ]
    primary = job.dataset.signature.objective.primary
    loss = primary.loss(metrics[primary.name], job.report.metrics[primary.name].value)
    if not job.artifact.within_budget:
        return ["no compressed form is within the budget of size and quality"]
    if loss > job.budget.quality_loss:
        return [
            f"compression costs {loss:.2%} of {primary.name} on the test rows, the budget is"
            f" {job.budget.quality_loss:.2%}"
        ]
    return []


def _obstacle(job: GateJob, champion: Champion) -> str | None:
    """Why the champion and the challenger cannot be scored on the same rows, if so."""
    content = store().get_file(champion.manifest, SIGNATURE_FILE)
    theirs = Signature.model_validate_json(content)
    ours = job.dataset.signature
    if theirs.features.inputs != ours.features.inputs:
        return "its inputs have other names, types or shapes"
    if theirs.objective.output != ours.objective.output:
        return "its output has another type or shape"
    table = rows(job.dataset, "test")
    try:
        theirs.features.encode(table)
        theirs.objective.encode(table)
    except pl.exceptions.PolarsError as error:
        return str(error).partition("\n")[0]
    return None


def _compare(
    job: GateJob,
    champion: Champion,
    objective: Objective,
    losses: dict[str, Floats],
    metrics: dict[str, float],
) -> Comparison:
    theirs = _losses(job, champion.manifest)
    names = list(losses)
    primary = objective.primary

    def worse(*samples: Floats, axis: int = -1) -> NDArray[Any]:
        del axis
        mine = dict(zip(names, samples[: len(names)], strict=True))
        others = dict(zip(names, samples[len(names) :], strict=True))
        challenger = objective.metrics(mine)[primary.name]
        reference = objective.metrics(others)[primary.name]
        sign = -1.0 if primary.better == "higher" else 1.0
        scale = np.maximum(np.abs(reference), 1e-12)
        difference: NDArray[Any] = sign * (challenger - reference) / scale
        return difference

    samples = (*losses.values(), *(theirs[name] for name in names))
    if all(np.array_equal(losses[n], theirs[n]) for n in names):
        low, high = np.zeros(1), np.zeros(1)
    else:
        # Two-sided at 2c - 1, so that the lower end is a one-sided bound at confidence c.
        low, high = resampled(worse, samples, 2 * job.gate.confidence - 1)
    return Comparison(
        champion=champion.digest,
        challenger_metric=metrics[primary.name],
        champion_metric=float(objective.metrics(theirs)[primary.name]),
        worse_by=Interval(value=float(worse(*samples)), low=float(low[0]), high=float(high[0])),
    )


def _why_promoted(gate: Gate, comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["every floor holds; there is no champion yet"]
    return [
        f"every floor holds; not worse than the champion beyond {gate.margin:.2%}"
        f" (difference {comparison.worse_by.value:+.2%}, interval {comparison.worse_by.low:+.2%}"
        f" to {comparison.worse_by.high:+.2%})"
    ]
