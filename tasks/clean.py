"""Clean raw objects on Dask: one future for each object, content-addressed partitions.

A partition is a function of its raw object, the reference tables and the line's cleaning, so an
object that was cleaned before is not read again and the cost of a new version follows the new
data. Every record ends as a row or in quarantine with its reason; labels, statistics and splits
are combined in the order of the object names, so the result does not depend on workers.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from pydantic import SerializeAsAny

from models import catalog
from models.data import REFUSED, Check, Data, RefusedObject
from models.digests import Digest, canonical_json, json_digest
from models.objectives import Objective
from models.open import Frozen
from models.signature import Signature
from models.splits import Subset, identity_hash
from tasks import cluster, progress
from tasks.dataset import DatasetManifest, Partition, without
from tasks.refs import Dataset, Refusal, Snapshot
from tasks.snapshot import RawObject, raw_objects
from tasks.stage import scratch, stage
from tasks.store import MissingError, content_key, store

WHOLE_OBJECT = "object"
SMALLEST_SPLIT = 10


class CleaningError(ValueError):
    """The data as a whole cannot be used; the message says why and what to do."""


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
    references = _references(data, prefix, objects)
    identity = clean.identity(data, objective, prefix, snapshot)
    identity["arguments"]["snapshot"] = {name: item.sha256 for name, item in references.items()}
    job = Job(
        cleaning=scratch(json_digest(identity)),
        data=data,
        objective=objective,
        prefix=prefix,
        references=references,
    )
    wanted, refusals = _wanted(data, objects)
    known = _known(job.cleaning)
    found = {i: known[item.address] for i, item in enumerate(wanted) if item.address in known}
    missing = [index for index in range(len(wanted)) if index not in found]
    text = job.model_dump_json()
    items = [(text, wanted[index].model_dump_json()) for index in missing]
    for done, (index, record) in enumerate(cluster.spread(clean_object, items) if items else (), 1):
        found[missing[index]] = Partition.model_validate_json(record)
        progress.tell("clean", "progress", done=done, total=len(items), unit="objects")
    dataset = _assemble(data, objective, [found[i] for i in range(len(wanted))], refusals)
    _remember(job.cleaning, dataset.digest)
    return dataset.model_copy(
        update={"observed": {"cleaned": len(missing), "reused": len(wanted) - len(missing)}}
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
        kept, refused = _checked(parsed.rows, parsed.refused, checks)
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


def _checked(
    rows: pl.DataFrame, refused: pl.DataFrame, checks: Sequence[Check]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that meet every check, and the quarantine with the first check each other row fails."""
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
        first = np.zeros(len(identity), np.bool_)
        first[np.unique(identity, return_index=True)[1]] = True
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
        **_summaries(data, objective, rows),
    )


def _quarantine(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    return rows.select("row", field=pl.lit("record"), reason=pl.lit(reason)).cast(REFUSED)  # type: ignore[arg-type]


def _summaries(data: Data, objective: Objective, rows: pl.DataFrame) -> dict[str, Any]:
    groups = {str(key[0]): g for key, g in rows.partition_by("split", as_dict=True).items()}
    return {
        "labels": {label: groups[label].height for label in sorted(groups)},
        "features": {label: data.summarise(groups[label]) for label in sorted(groups)},
        "targets": {label: objective.summarise(groups[label]) for label in sorted(groups)},
    }


def _assemble(
    data: Data, objective: Objective, partitions: Sequence[Partition], refusals: Sequence[Refusal]
) -> Dataset:
    excluded = _repeated(partitions)
    if excluded:
        partitions = [_without(data, objective, p, excluded.get(p.name, ())) for p in partitions]
    total = _total([*refusals, *(r for p in partitions for r in p.refusals)])
    labels = sorted({label for p in partitions for label in p.labels})
    if not labels:
        reasons = "; ".join(f"{r.field}: {r.reason}" for r in total[:3]) or "no object is data"
        raise CleaningError(f"no row is left after cleaning ({reasons})")
    try:
        splits = data.split.assign(labels)
        train = [(p, label) for p in partitions for label in p.labels if splits[label] == "train"]
        signature = Signature(
            features=data.fit([p.features[label] for p, label in train]),
            objective=objective.fit([p.targets[label] for p, label in train]),
        )
    except ValueError as error:
        raise CleaningError(str(error)) from None
    counts: Counter[Subset] = Counter()
    for p in partitions:
        counts.update({splits[label]: 0 for label in p.labels})
        for label, count in p.labels.items():
            counts[splits[label]] += count
    for split, count in counts.items():
        if count < SMALLEST_SPLIT:
            named = ", ".join(label for label in labels if splits[label] == split)
            raise CleaningError(
                f"only {count} rows fell into the {split} split ({named}), {SMALLEST_SPLIT} are"
                " needed to judge a model: land more data, or mend what put them there"
            )
    manifest = DatasetManifest(
        partitions=tuple(partitions), excluded=excluded, splits=splits, signature=signature
    )
    digest = store().put_content(canonical_json(manifest.model_dump(mode="json")))
    return Dataset(
        digest=digest,
        stored=(content_key(digest), *(key for p in partitions for key in p.stored)),
        rows=dict(counts),
        refused=tuple(total),
        signature=signature,
    )


def _total(refusals: Sequence[Refusal]) -> list[Refusal]:
    counts: Counter[tuple[str, str]] = Counter()
    for refusal in refusals:
        counts[refusal.field, refusal.reason] += refusal.rows
    return [Refusal(field=f, reason=r, rows=rows) for (f, r), rows in counts.most_common()]


def _repeated(partitions: Sequence[Partition]) -> dict[str, tuple[int, ...]]:
    """Positions, in its table, of the rows of each partition that an earlier partition holds."""
    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(lambda p: store().get_content(p.identities), partitions))
    parts = [np.frombuffer(blob, np.uint64) for blob in blobs]
    identities = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    ordered = np.sort(identities)
    if not (ordered[1:] == ordered[:-1]).any():
        return {}
    order = np.argsort(identities, kind="stable")
    later = np.sort(order[1:][identities[order][1:] == identities[order][:-1]])
    ends = np.cumsum([len(part) for part in parts])
    owner = np.searchsorted(ends, later, side="right")
    return {
        partitions[i].name: tuple(int(x) for x in later[owner == i] - (ends[i] - len(parts[i])))
        for i in np.unique(owner)
    }


def _without(
    data: Data, objective: Objective, partition: Partition, positions: Sequence[int]
) -> Partition:
    """The partition as if those rows were not in it; its table stays as it is."""
    if not positions:
        return partition
    rows = without(store().get_table(partition.rows), positions)
    again = Refusal(
        field="record", reason="repeats a row of an earlier object", rows=len(positions)
    )
    return partition.model_copy(
        update={**_summaries(data, objective, rows), "refusals": (*partition.refusals, again)}
    )


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
