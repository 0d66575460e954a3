"""Two served models scored on the same rows, none of which either had seen."""

import numpy as np
from pydantic import ValidationError

from models.objectives import Floats, Objective
from models.open import first
from tasks.answered import UnreadableError, chosen, incomparable, losses
from tasks.dataset import unseen
from tasks.difference import Metric, Paired, Scores
from tasks.evaluate import SMALLEST_SLICE
from tasks.isolated import Emit
from tasks.jobs import ScoresJob
from tasks.paired import compare, found_worse


def measure(job: ScoresJob, emit: Emit) -> Scores:
    """In the isolated process: A and B on B's test rows, less those A had seen."""
    fresh = unseen(job.dataset_a, job.dataset_b)
    left = int(np.count_nonzero(fresh))
    if left < SMALLEST_SLICE:
        return _none(
            f"of B's {len(fresh):,} test rows A had seen all but {left:,} in training or"
            f" validation, {SMALLEST_SLICE} are needed: compare them the other way round"
        )
    a: dict[str, Floats] = {}
    try:
        obstacle = incomparable(job.dataset_b.signature, job.a)
        if obstacle is None:
            a = chosen(losses(job.a, job.dataset_b), fresh)
    except UnreadableError as error:
        obstacle = str(error)
    except ValidationError as error:
        obstacle = f"its signature does not fit this code: {first(error)}"
    if obstacle:
        return _none(f"A cannot be scored on B's rows: {obstacle}")
    b = chosen(losses(job.b, job.dataset_b), fresh)
    emit({"scored": left})
    objective = job.dataset_b.signature.objective
    if obstacle := objective.unlike(b, a):
        return _none(f"A cannot be scored on B's rows: {obstacle}")
    return _judged(objective, a, b, job.confidence, len(fresh) - left)


def _judged(
    objective: Objective, a: dict[str, Floats], b: dict[str, Floats], confidence: float, seen: int
) -> Scores:
    ours, theirs = objective.metrics(b), objective.metrics(a)
    metrics = tuple(Metric(name=n, a=float(theirs[n]), b=float(ours[n])) for n in ours)
    for metric in metrics:
        for who, value in (("A", metric.a), ("B", metric.b)):
            if not np.isfinite(value):
                return _none(f"{metric.name} of {who} is {value}: it answers with no numbers")
    found = compare(objective, b, a, confidence)
    if found_worse(found, 0.0, confidence):
        finding = "B is worse"
    elif found_worse(compare(objective, a, b, confidence), 0.0, confidence):
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
