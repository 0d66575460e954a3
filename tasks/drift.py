"""Look for drift: rows that came after a version was made against the rows it was trained on.

`fresh` are rows of raw objects that its snapshot did not hold, cleaned as its own were; `captured`
are inputs that the model server kept a sample of. Features are compared with the training rows; the
version's answers with its answers to the test rows, because to rows it was trained on it answers
too well. A sample with too few rows is not judged.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, JsonValue

from models.data import Tensors
from models.digests import Digest, canonical_json
from models.open import Frozen
from models.signature import Signature
from models.splits import Subset
from tasks.captured import Captured, tensors
from tasks.dataset import partitions
from tasks.fresh import Fresh, refused_rows, tables
from tasks.isolated import Emit, isolated
from tasks.refs import Dataset, Ref
from tasks.score_object import predict
from tasks.served import Served
from tasks.stage import stage
from tasks.store import content_key, store
from tasks.two_samples import Finding, Found, each_column, search, shares, together

FRESH, CAPTURED = "fresh", "captured"
PLOTTED = 6
QUARANTINE, ALL_FEATURES, ANSWER = "quarantined rows", "all features together", "answer: "


class Search(Frozen):
    """How drift is looked for."""

    false_alarms: float = Field(0.01, gt=0, lt=0.5)
    """Chance that a search finds drift where there is none, over all its tests together."""
    margin: float = Field(0.05, ge=0, lt=1)
    """Smallest difference that counts, as a share of the rows; smaller ones are found and shown."""
    minimum_rows: int = Field(200, ge=20, le=1_000_000)
    """A sample of fewer rows is not judged."""
    most_rows: int = Field(10_000, ge=1000, le=1_000_000)
    """Rows that are compared at most, chosen by their identity."""
    days: int = Field(7, ge=1, le=366)
    """Captured inputs of so many days before now."""


class DriftJob(Frozen):
    """What the search needs on a worker."""

    how: Search
    served: Served
    dataset: Dataset
    fresh: Fresh
    captured: Captured


class Drift(Ref):
    """What a search found; `digest` is its report's."""

    line: str
    version: int
    version_digest: Digest
    evidence: tuple[Digest, Digest]
    """Digests of what was compared: fresh rows, captured inputs."""
    rows: dict[str, int]
    """Rows of each sample, as many as there are."""
    unjudged: tuple[str, ...]
    """Samples with too few rows."""
    findings: tuple[Finding, ...]
    """Every test, the surest first."""

    @property
    def drifted(self) -> tuple[str, ...]:
        """What drifted, by name."""
        return tuple(dict.fromkeys(f.name for f in self.findings if f.drifted))


class Described(NamedTuple):
    """Rows as tests and people compare them."""

    features: pl.DataFrame
    answers: pl.DataFrame


@stage("drift")
def drift(how: Search, served: Served, dataset: Dataset, fresh: Fresh, captured: Captured) -> Drift:
    """What drifted, as far as the evidence shows; raises IsolatedError."""
    job = DriftJob(how=how, served=served, dataset=dataset, fresh=fresh, captured=captured)
    return isolated("tasks.drift:measure", job, Drift, stage="drift", profile="fast", threads=1)


def measure(job: DriftJob, emit: Emit) -> Drift:
    """In the isolated process: describe what there is, compare it, store the evidence."""
    how, counts = job.how, {FRESH: job.fresh.rows, CAPTURED: job.captured.rows}
    signature, session = job.served.signature(), job.served.session()
    old = Described(pl.DataFrame(), pl.DataFrame())
    new: dict[str, Described] = {}
    tests: dict[str, list[Found]] = {}
    if max(counts.values()) >= how.minimum_rows:
        train, test = _split(job, signature, "train"), _split(job, signature, "test")
        old = _described(signature, session, train, test)
    for name, read in ((FRESH, _fresh), (CAPTURED, _captured)):
        if counts[name] >= how.minimum_rows:
            rows = read(job, signature)
            new[name] = _described(signature, session, rows, rows)
            tests[name] = [
                *each_column(old.features, new[name].features),
                *each_column(old.answers, new[name].answers),
                together(ALL_FEATURES, old.features, new[name].features),
            ]
            emit({"sample": name, "rows": counts[name], "tests": len(tests[name])})
    if counts[FRESH] + refused_rows(job.fresh.refused) >= how.minimum_rows:
        tests.setdefault(FRESH, []).append(_quarantine(job))
    evidence = job.fresh.digest, job.captured.digest
    findings = tuple(search(tests, how.false_alarms, how.margin))
    content = canonical_json(
        {
            "settings": how.model_dump(),
            "version": job.served.digest,
            "evidence": evidence,
            "rows": counts,
            "findings": [finding.model_dump() for finding in findings],
        }
    )
    digest = store().put_content(content)
    return Drift(
        digest=digest,
        stored=(content_key(digest),),
        observed={"plots": _plots(findings, old, new)},
        line=job.served.line,
        version=job.served.number,
        version_digest=job.served.digest,
        evidence=evidence,
        rows=counts,
        unjudged=tuple(n for n, count in counts.items() if count and n not in new),
        findings=findings,
    )


def _fresh(job: DriftJob, signature: Signature) -> Tensors:
    rows = _chosen(tables(job.fresh), job.fresh.rows, job.how.most_rows)
    return signature.features.encode(rows)


def _captured(job: DriftJob, signature: Signature) -> Tensors:
    return tensors(job.captured, signature, job.how.most_rows)


def _split(job: DriftJob, signature: Signature, subset: Subset) -> Tensors:
    tables = partitions(job.dataset, subset)
    return signature.features.encode(_chosen(tables, job.dataset.rows[subset], job.how.most_rows))


def _chosen(found: Iterable[pl.DataFrame], count: int, most: int) -> pl.DataFrame:
    """About `most` of the rows, those whose identity, a hash, is least: the same every time."""
    bound = pl.lit(int(min(1.0, most / max(1, count)) * (2**64 - 2**11)), pl.UInt64)
    return pl.concat(table.filter(pl.col("identity") <= bound) for table in found)


def _described(signature: Signature, session: Any, features: Tensors, asked: Tensors) -> Described:
    described = signature.features.describe(features)
    if signature.objective.steps:
        # What such a line writes depends on more than its row.
        return Described(described, pl.DataFrame())
    table = signature.objective.table(predict(session, asked))
    # A struct or a list of numbers says the same as the columns beside it, in more tests.
    answers = table.select(
        (pl.col(c.name).cast(pl.Float64) if c.dtype.is_numeric() else pl.col(c.name)).name.prefix(
            ANSWER
        )
        for c in table.iter_columns()
        if c.dtype.is_numeric() or c.dtype == pl.String
    )
    return Described(described, answers)


def _plots(
    findings: tuple[Finding, ...], old: Described, new: dict[str, Described]
) -> dict[str, JsonValue]:
    from tasks.drift_plot import histograms

    drawn: list[tuple[Finding, pl.Series, pl.Series]] = []
    for finding in findings:
        for part in ("features", "answers") if finding.sample in new else ():
            before, now = getattr(old, part), getattr(new[finding.sample], part)
            if finding.name in before.columns:
                drawn.append((finding, before[finding.name], now[finding.name]))
    return {"drift": store().put_content(histograms(drawn[:PLOTTED]))} if drawn else {}


def _quarantine(job: DriftJob) -> Found:
    """Whether more or fewer rows are refused than when the version was made."""
    made = sum(job.dataset.rows.values()), refused_rows(job.dataset.refused)
    return shares(QUARANTINE, np.array([made, (job.fresh.rows, refused_rows(job.fresh.refused))]))
