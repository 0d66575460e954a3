"""The gate: may this version serve? Judged on the test rows, as it would be served.

*refuse*: a floor is broken, or compression cost more than its budget. *hold*: sound, but a paired
test finds it worse than the champion by more than the line's margin, on the rows the champion had
not seen or on a slice of them the line names; with `gate.noninferior`, already when it is not shown
to be no worse. *promote*: otherwise. `tasks/paired.py` has the tests, and what they promise.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python

from models.digests import canonical_json
from models.forms import UNCOMPRESSED
from models.objectives import Floats, Objective
from models.spec import Budget, Gate
from tasks.answered import answered, chosen, rival
from tasks.calibration import DIRECTIONS, calibration, certainties
from tasks.dataset import unseen
from tasks.evaluate import SMALLEST_SLICE, Columns, groups
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import GateJob
from tasks.paired import compare, compare_slice, found_worse, shown_no_worse
from tasks.refs import (
    Artifact,
    Champion,
    Comparison,
    Dataset,
    Difference,
    Report,
    SliceComparison,
    Verdict,
)
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
    gate, objective = job.gate, job.dataset.signature.objective
    scores, certain, members = Columns(), Columns(), Columns()
    for table, predicted, target in answered(job.artifact.manifest, job.dataset):
        scores.add(objective.losses(predicted, target))
        certain.add(certainties(objective, predicted, target))
        members.add(dict(groups(job.dataset.signature.features, objective, table, target)))
    ours = scores.whole()
    metrics = {name: float(value) for name, value in objective.metrics(ours).items()}
    emit({"scored": job.dataset.rows["test"]})
    undefined = [f"{name} is {value}" for name, value in metrics.items() if not np.isfinite(value)]
    if undefined:
        raise ValueError(
            f"{', '.join(undefined)} on the test rows: the served model answers with no numbers"
        )
    metrics |= calibration(certain.whole())
    fresh = np.ones(job.dataset.rows["test"], np.bool_)
    if job.champion is not None and job.champion.dataset is not None:
        fresh = unseen(job.champion.dataset, job.dataset)
    named = named_slices(gate, members.whole())
    large = {n: s for n, s in named.items() if np.count_nonzero(s.chosen & fresh) >= SMALLEST_SLICE}
    uncompressed = store().get_table(job.report.losses)
    compression = compare(
        objective,
        ours,
        {name: uncompressed[name].to_numpy() for name in ours},
        gate.confidence,
    )
    refused = [*broken_floors(gate, objective, metrics), *_over_budget(job, metrics, compression)]
    comparison, obstacle = None, None
    slices: tuple[SliceComparison, ...] = ()
    if job.champion is not None:
        obstacle, theirs = rival(job.champion, job.dataset, fresh)
        mine = chosen(ours, fresh)
        obstacle = obstacle or objective.unlike(mine, theirs)
        if obstacle is None:
            left_out = int(np.count_nonzero(~fresh))
            comparison = against(job.champion, gate, objective, mine, theirs, left_out)
            rest = {n: Slice(s.chosen[fresh], s.margin) for n, s in large.items()}
            slices = slice_by_slice(gate, objective, mine, theirs, rest)
    decided, reasons = decision(gate, refused, obstacle, comparison, slices)
    verdict: dict[str, Any] = {
        "decision": decided,
        "reasons": tuple(reasons),
        "metrics": metrics,
        "comparison": comparison,
        "slices": slices,
        "unjudged": tuple(sorted(named.keys() - large.keys())),
        "compression": compression,
    }
    if job.champion is not None:
        verdict["against"] = job.champion.digest
    place = {"artifact": job.artifact.digest, "dataset": job.dataset.digest}
    content = canonical_json({**to_jsonable_python(verdict), **place})
    digest = store().put_content(content)
    return Verdict.model_validate({"digest": digest, "stored": (content_key(digest),), **verdict})


def decision(
    gate: Gate,
    refused: list[str],
    obstacle: str | None,
    comparison: Comparison | None,
    slices: tuple[SliceComparison, ...],
) -> tuple[str, list[str]]:
    """Promote, hold or refuse, and the reasons."""
    if refused:
        return "refuse", refused
    if obstacle is not None:
        return gate.incomparable, [
            f"the champion cannot be scored on these rows ({obstacle}); gate.incomparable"
        ]
    if comparison is None:
        return "promote", ["every floor holds; there is no champion yet"]
    held = [
        f"{found.name}: worse than the champion by {found.worse_by.value:.2%}"
        f" (at least {found.worse_by.low:.2%}, margin {found.margin:.2%})"
        for found in slices
        if found.worse
    ]
    by, told = comparison.worse_by, _rows_of(comparison)
    interval = f"difference {by.value:+.2%}, interval {by.low:+.2%} to {by.high:+.2%}"
    if found_worse(comparison, gate.margin, gate.confidence):
        held.insert(
            0,
            f"worse than the champion by {by.value:.2%} (at least {by.low:.2%} with"
            f" {gate.confidence:.0%} confidence, margin {gate.margin:.2%})",
        )
    elif gate.noninferior and not shown_no_worse(comparison, gate.margin):
        held.insert(
            0,
            f"not shown to be less than {gate.margin:.2%} worse than the champion on"
            f" {comparison.rows:,} rows ({interval}); gate.noninferior",
        )
    if held:
        return "hold", [*held, *told]
    proof = "shown no" if gate.noninferior else "not"
    among = f", nor on any of {len(slices)} slices" if slices else ""
    return "promote", [
        f"every floor holds; {proof} worse than the champion beyond {gate.margin:.2%}"
        f" ({interval}){among}",
        *told,
    ]


def _rows_of(comparison: Comparison) -> list[str]:
    """What is to be said of the rows that were compared."""
    if comparison.unknown:
        return [
            "the champion may have seen some of the test rows: which it learnt from is unknown"
            f" ({comparison.unknown})"
        ]
    if comparison.seen:
        return [
            f"{comparison.seen:,} test rows that the champion had seen in training or validation"
            f" are left out, {comparison.rows:,} are compared"
        ]
    return []


class Slice(NamedTuple):
    """Rows of a slice, bool [n], and what the gate allows it to lose."""

    chosen: NDArray[np.bool_]
    margin: float


def named_slices(gate: Gate, there: Mapping[str, NDArray[np.bool_]]) -> dict[str, Slice]:
    """Of the slices there are, those the gate names; raises ValueError for a name none has."""
    found: dict[str, Slice] = {}
    # A whole name counts more than that of its column.
    for name, margin in sorted(gate.slices.items(), key=lambda item: "=" in item[0]):
        meant = [s for s in there if s == name or s.partition("=")[0] == name]
        if not meant:
            known = ", ".join(sorted({s.partition("=")[0] for s in there})) or "none"
            raise ValueError(f"gate.slices names {name!r}; this line has slices by {known}")
        found |= {s: Slice(there[s], margin) for s in meant}
    return found


def against(
    champion: Champion, gate: Gate, objective: Objective, ours: dict[str, Floats],
    theirs: dict[str, Floats], seen: int = 0,
) -> Comparison:  # fmt: skip
    """The challenger against the champion, from per-row losses [n] of both.

    `seen` test rows, which the champion had learnt from, are not among them.
    """
    name = objective.primary.name
    found = compare(objective, ours, theirs, gate.confidence)
    return Comparison(
        **dict(found),
        champion=champion.digest,
        challenger_metric=float(objective.metrics(ours)[name]),
        champion_metric=float(objective.metrics(theirs)[name]),
        seen=seen,
        unknown="" if champion.dataset else champion.unknown,
    )


def slice_by_slice(
    gate: Gate, objective: Objective, ours: dict[str, Floats], theirs: dict[str, Floats],
    slices: dict[str, Slice],
) -> tuple[SliceComparison, ...]:  # fmt: skip
    """The same on every slice, in the order of their names."""
    results = []
    for name, (members, margin) in sorted(slices.items()):
        mine, others = chosen(ours, members), chosen(theirs, members)
        found = compare_slice(objective, mine, others, gate.confidence, len(slices))
        worse = found_worse(found, margin, gate.confidence, len(slices))
        results.append(SliceComparison(**dict(found), name=name, margin=margin, worse=worse))
    return tuple(results)


def broken_floors(gate: Gate, objective: Objective, metrics: dict[str, float]) -> list[str]:
    """What is said of every floor that does not hold; raises ValueError for one that cannot be."""
    broken = []
    for name, floor in gate.floors.items():
        if name not in metrics:
            known = ", ".join(metrics)
            raise ValueError(f"gate.floors names {name!r}; this line's metrics are {known}")
        better = DIRECTIONS.get(name) or objective.better(name)
        ok = metrics[name] >= floor if better == "higher" else metrics[name] <= floor
        if not ok:
            broken.append(f"{name} is {metrics[name]:.4g}, the floor is {floor:.4g}")
    return broken


def _over_budget(job: GateJob, metrics: dict[str, float], compression: Difference) -> list[str]:
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
    if job.artifact.chosen in job.budget.exclude:
        return ["no form is left within the budget but those of budget.exclude"]
    if not job.artifact.within_budget:
        return ["no compressed form is within the budget of size and quality"]
    if loss > job.budget.quality_loss:
        by = compression.worse_by
        return [
            f"compression costs {loss:.2%} of {primary.name} on the test rows (paired interval"
            f" {by.low:+.2%} to {by.high:+.2%}), the budget is {job.budget.quality_loss:.2%}"
        ]
    return []
