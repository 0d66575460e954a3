"""Two served models scored on the same rows, none of which either had seen."""

import numpy as np

from models.objectives import Objective
from tasks.dataset import learnt, rows
from tasks.difference import Metric, Paired, Scores
from tasks.evaluate import SMALLEST_SLICE
from tasks.gate import Scored, incomparable, scored
from tasks.isolated import Emit
from tasks.jobs import ScoresJob
from tasks.paired import compare, found_worse


def measure(job: ScoresJob, emit: Emit) -> Scores:
    """In the isolated process: A and B on B's test rows, less those A had seen."""
    table = rows(job.dataset_b, "test")
    known = learnt(job.dataset_a, table.get_column("identity").to_numpy())
    fresh = table.filter(~known)
    if fresh.height < SMALLEST_SLICE:
        return _none(
            f"of B's {table.height:,} test rows A had seen all but {fresh.height:,} in training or"
            f" validation, {SMALLEST_SLICE} are needed: compare them the other way round"
        )
    try:
        obstacle = incomparable(job.dataset_b.signature, fresh, job.a)
    except ValueError as error:
        obstacle = f"its signature does not fit this code: {str(error).partition(chr(10))[0]}"
    if obstacle:
        return _none(f"A cannot be scored on B's rows: {obstacle}")
    a, b = scored(job.a, fresh), scored(job.b, fresh)
    emit({"scored": fresh.height})
    objective = job.dataset_b.signature.objective
    return _judged(objective, a, b, job.confidence, int(known.sum()))


def _judged(objective: Objective, a: Scored, b: Scored, confidence: float, seen: int) -> Scores:
    ours, theirs = objective.metrics(b.losses), objective.metrics(a.losses)
    metrics = tuple(Metric(name=n, a=float(theirs[n]), b=float(ours[n])) for n in ours)
    for metric in metrics:
        for who, value in (("A", metric.a), ("B", metric.b)):
            if not np.isfinite(value):
                return _none(f"{metric.name} of {who} is {value}: it answers with no numbers")
    found = compare(objective, b.losses, a.losses, confidence)
    if found_worse(found, 0.0, confidence):
        finding = "B is worse"
    elif found_worse(compare(objective, a.losses, b.losses, confidence), 0.0, confidence):
        finding = "B is better"
    else:
        finding = "no difference is shown"
    paired = Paired.model_validate(
        {
            "rows": found.rows,
            "seen": seen,
            "metrics": metrics,
            "primary": objective.primary.name,
            "confidence": confidence,
            "worse_by": found.worse_by,
            "mcnemar": found.mcnemar,
            "finding": finding,
        }
    )
    return Scores(paired=paired)


def _none(obstacle: str) -> Scores:
    return Scores(paired=None, obstacle=obstacle)
