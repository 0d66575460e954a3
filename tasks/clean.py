"""Clean raw objects on Dask: one future for each object, content-addressed partitions.

A partition is a function of its raw object, the reference tables and the line's cleaning, so an
object that was cleaned before is not read again and the cost of a new version follows the new
data. Every record ends as a row or in quarantine with its reason; labels, statistics and splits
are combined in the order of the object names, so the result does not depend on workers.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from pydantic import SerializeAsAny

from models import catalog
from models.data import REFUSED, Check, Data, RefusedObject
from models.digests import Digest, json_digest
from models.objectives import Objective
from models.open import Frozen
from models.splits import identity_hash
from tasks import cluster, progress
from tasks.assemble import CleaningError, assemble, summaries
from tasks.dataset import DatasetManifest, Partition
from tasks.refs import Dataset, Refusal, Snapshot
from tasks.snapshot import RawObject, raw_objects
from tasks.stage import scratch, stage
from tasks.store import MissingError, store

WHOLE_OBJECT = "object"


class Job(Frozen):
    """What a worker needs to clean raw objects in one way."""

    cleaning: Digest
    """Identity of the cleaning: code, settings and the content of the reference tables."""
    data: SerializeAsAny[Data]
    objective: SerializeAsAny[Objective]
    prefix: str
    references: dict[str, RawObject]


@stage("clean")
def clean(data: Data, objective: Objective, prefix: str, snapshot: Snapshot) -> Dataset:
    """Cleaned partitions of every raw object, their splits and fitted preprocessing.

    Raises CleaningError when too little is left, MissingError when a raw object was overwritten.
    """
    objects = list(raw_objects(snapshot))
    job = cleaning_job(data, objective, prefix, snapshot, objects)
    wanted, refusals = _wanted(data, objects)
    known = _known(job.cleaning)
    found = {i: known[item.address] for i, item in enumerate(wanted) if item.address in known}
    missing = [index for index in range(len(wanted)) if index not in found]
    text = job.model_dump_json()
    items = [(text, wanted[index].model_dump_json()) for index in missing]
    for done, (index, record) in enumerate(cluster.spread(clean_object, items) if items else (), 1):
        found[missing[index]] = Partition.model_validate_json(record)
        progress.tell("clean", "progress", done=done, total=len(items), unit="objects")
    dataset = assemble(data, objective, [found[i] for i in range(len(wanted))], refusals)
    _remember(job.cleaning, dataset.digest)
    return dataset.model_copy(
        update={"observed": {"cleaned": len(missing), "reused": len(wanted) - len(missing)}}
    )


def cleaning_job(
    data: Data, objective: Objective, prefix: str, snapshot: Snapshot, objects: Sequence[RawObject]
) -> Job:
    """How the snapshot's objects are cleaned; raises CleaningError when a reference is missing."""
    references = _references(data, prefix, objects)
    identity = clean.identity(data, objective, prefix, snapshot)
    identity["arguments"]["snapshot"] = {name: item.sha256 for name, item in references.items()}
    return Job(
        cleaning=scratch(json_digest(identity)),
        data=data,
        objective=objective,
        prefix=prefix,
        references=references,
    )


def clean_object(job_text: str, item_text: str) -> str:
    """Clean one raw object on a worker; the partition's record as JSON.

    Raises MissingError when the object no longer holds what the snapshot saw.
    """
    job, tables = _prepared(job_text)
    item = RawObject.model_validate_json(item_text)
    record_key = f"partitions/{job.cleaning}/{item.address}"
    try:
        record = store().get(record_key).content.decode()
    except MissingError:
        record = None
    if record is not None and _is_whole(Partition.model_validate_json(record)):
        return record
    payload = item.read(job.prefix)
    try:
        parsed = job.data.parse(item.name, payload, tables)
    except RefusedObject as error:
        reason = [{"row": 0, "field": WHOLE_OBJECT, "reason": f"{item.name}: {error}"}]
        kept, refused = None, pl.DataFrame(reason, schema=REFUSED)
    else:
        checks = [*job.data.checks(), *job.objective.checks()]
        kept, refused = checked(parsed.rows, parsed.refused, checks)
    record = _record(job, item, kept, refused).model_dump_json()
    store().put(record_key, record.encode())
    return record


@lru_cache(maxsize=4)
def _prepared(job_text: str) -> tuple[Job, dict[str, pl.DataFrame]]:
    catalog.modules()
    job = Job.model_validate_json(job_text)
    tables = {
        name: job.data.reference(name, item.read(job.prefix))
        for name, item in job.references.items()
    }
    return job, tables


def _wanted(data: Data, objects: Sequence[RawObject]) -> tuple[list[RawObject], list[Refusal]]:
    """The objects to clean, and those quarantined unread."""
    wanted: list[RawObject] = []
    refusals: list[Refusal] = []
    seen: dict[str, str] = {}
    for item in objects:
        if item.name in data.references.values():
            continue
        reason = None
        if not item.name.endswith(data.suffixes):
            reason = f"{item.name} does not end in {' or '.join(data.suffixes)}"
        elif item.sha256 in seen:
            reason = f"{item.name} repeats {seen[item.sha256]}"
        if reason:
            refusals.append(Refusal(field=WHOLE_OBJECT, reason=reason, rows=0))
        else:
            seen[item.sha256] = item.name
            wanted.append(item)
    return wanted, refusals


def _references(data: Data, prefix: str, objects: Sequence[RawObject]) -> dict[str, RawObject]:
    by_name = {item.name: item for item in objects}
    for name, location in data.references.items():
        if location not in by_name:
            where = store().uri(prefix + location)
            raise CleaningError(f"{where} is missing: land the reference table {name!r}")
    return {name: by_name[location] for name, location in data.references.items()}


def checked(
    rows: pl.DataFrame, refused: pl.DataFrame, checks: Sequence[Check]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that meet every check, and the quarantine with the first check each other row fails."""
    if not checks:
        return rows, refused
    verdict: Any = pl
    for number, check in enumerate(checks):
        verdict = verdict.when(~check.holds.fill_null(False)).then(pl.lit(number, pl.Int32))
    marked = rows.with_columns(verdict.otherwise(None).alias("__failed"))
    failed = marked.filter(pl.col("__failed").is_not_null())
    reasons = failed.select(
        "row",
        pl.col("__failed").replace_strict(
            range(len(checks)), [c.field for c in checks], return_dtype=pl.String
        ).alias("field"),
        pl.col("__failed").replace_strict(
            range(len(checks)), [c.reason for c in checks], return_dtype=pl.String
        ).alias("reason"),
    )  # fmt: skip
    kept = marked.filter(pl.col("__failed").is_null()).drop("__failed")
    return kept, pl.concat([refused, reasons.cast(REFUSED)])  # type: ignore[arg-type]


def _record(
    job: Job, item: RawObject, kept: pl.DataFrame | None, refused: pl.DataFrame
) -> Partition:
    data, objective = job.data, job.objective
    rows = pl.DataFrame(schema={"identity": pl.UInt64, "split": pl.String})
    if kept is not None and kept.height:
        identity = identity_hash(kept, data.identity)
        rows = kept.select("row", *data.kept, objective.target).with_columns(
            pl.Series("identity", identity), data.split.label(kept, identity).alias("split")
        )
        # Where one record with two targets is wrong, both wait until all objects are known.
        seen = [*data.identity, objective.target] if data.contradictions else None
        key = identity_hash(kept, seen) if seen else identity
        first = np.zeros(len(key), np.bool_)
        first[np.unique(key, return_index=True)[1]] = True
        rows, repeated = rows.filter(first), rows.filter(~first)
        refused = pl.concat([refused, _quarantine(repeated, "repeats an earlier row")])
    counts = refused.group_by("field", "reason").len().sort("field", "reason")
    return Partition(
        name=item.name,
        sha256=item.sha256,
        rows=store().put_table(rows),
        identities=store().put_content(rows.get_column("identity").to_numpy().tobytes()),
        refused=store().put_table(refused.sort("row", "field")),
        refusals=tuple(
            Refusal(field=field, reason=reason, rows=count)
            for field, reason, count in counts.iter_rows()
        ),
        **summaries(data, objective, rows),
    )


def _quarantine(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    return rows.select("row", field=pl.lit("record"), reason=pl.lit(reason)).cast(REFUSED)  # type: ignore[arg-type]


def _known(cleaning: Digest) -> dict[Digest, Partition]:
    """Partitions of the last dataset cleaned the same way, by address: one request for all."""
    try:
        digest = store().get(f"partitions/{cleaning}/last").content.decode()
        last = DatasetManifest.model_validate_json(store().get_content(digest))
    except LookupError:
        return {}
    whole = [p for p in last.partitions if p.name not in last.excluded]
    with ThreadPoolExecutor(8) as pool:
        checked = zip(whole, pool.map(_is_whole, whole), strict=True)
        return {p.address: p for p, there in checked if there}


def _is_whole(partition: Partition) -> bool:
    """Whether everything the record names is still in the store."""
    return all(store().exists(key) for key in partition.stored)


def _remember(cleaning: Digest, digest: Digest) -> None:
    store().put(f"partitions/{cleaning}/last", digest.encode())
