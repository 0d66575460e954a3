"""A dataset from its partitions: repeated records, splits and fitted preprocessing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl

from models.data import Data
from models.digests import canonical_json
from models.objectives import Objective
from models.signature import Signature
from models.splits import Subset
from tasks.dataset import DatasetManifest, Partition, without
from tasks.refs import Dataset, Refusal
from tasks.store import content_key, store

SMALLEST_SPLIT = 10


class CleaningError(ValueError):
    """The data as a whole cannot be used; the message says why and what to do."""


def summaries(data: Data, objective: Objective, rows: pl.DataFrame) -> dict[str, Any]:
    """Row counts and statistics of cleaned rows for every split label: fields of a Partition."""
    groups = {str(key[0]): g for key, g in rows.partition_by("split", as_dict=True).items()}
    return {
        "labels": {label: groups[label].height for label in sorted(groups)},
        "features": {label: data.summarise(groups[label]) for label in sorted(groups)},
        "targets": {label: objective.summarise(groups[label]) for label in sorted(groups)},
    }


def assemble(
    data: Data, objective: Objective, partitions: Sequence[Partition], refusals: Sequence[Refusal]
) -> Dataset:
    """The dataset these partitions, in the order of their names, are together.

    Raises CleaningError when no row is left, a split is too small or the features cannot be fitted.
    """
    excluded = _repeated(partitions)
    wrong = _contradicting(objective, partitions, excluded) if data.contradictions else {}
    if excluded:
        partitions = [
            _without(data, objective, p, excluded.get(p.name, ()), wrong.get(p.name, ()))
            for p in partitions
        ]
        for name, positions in wrong.items():
            excluded[name] = tuple(sorted({*excluded.get(name, ()), *positions}))
    total = _total([*refusals, *(r for p in partitions for r in p.refusals)])
    labels = sorted({label for p in partitions for label in p.labels})
    if not labels:
        reasons = "; ".join(f"{r.field}: {r.reason}" for r in total[:3]) or "no object is data"
        raise CleaningError(f"no row is left after cleaning ({reasons})")
    try:
        splits = data.split.assign(labels)
        train = [(p, label) for p in partitions for label in p.labels if splits[label] == "train"]
        features = data.fit([p.features[label] for p, label in train])
        fitted = objective.fit([p.targets[label] for p, label in train])
        signature = Signature(features=features, objective=fitted.beside(features))
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


def _contradicting(
    objective: Objective, partitions: Sequence[Partition], repeated: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Positions, in its table, of the rows of each partition that others give another target."""
    blobs = {
        p.name: np.frombuffer(store().get_content(p.identities), np.uint64) for p in partitions
    }
    several = np.unique(
        np.concatenate([blobs[name][list(positions)] for name, positions in repeated.items()])
        if repeated
        else np.zeros(0, np.uint64)
    )
    parts = []
    for partition in partitions:
        chosen = np.isin(blobs[partition.name], several)
        if chosen.any():
            table = store().get_table(partition.rows).select("identity", objective.target)
            place = pl.lit(partition.name).alias("name")
            parts.append(table.with_row_index("position").filter(chosen).with_columns(place))
    if not parts:
        return {}
    targets = pl.col(objective.target).n_unique().over("identity")
    wrong = pl.concat(parts).filter(targets > 1).group_by("name", maintain_order=True)
    return {
        str(name): tuple(group.get_column("position").sort().to_list()) for (name,), group in wrong
    }


def _without(
    data: Data,
    objective: Objective,
    partition: Partition,
    repeated: Sequence[int],
    contradicting: Sequence[int] = (),
) -> Partition:
    """The partition as if those rows were not in it; its table stays as it is."""
    reasons = {
        "repeats a row of an earlier object": set(repeated) - set(contradicting),
        f"is there with another {objective.target} too": set(contradicting),
    }
    positions = sorted(set().union(*reasons.values()))
    if not positions:
        return partition
    rows = without(store().get_table(partition.rows), positions)
    refusals = [
        Refusal(field="record", reason=reason, rows=len(found))
        for reason, found in reasons.items()
        if found
    ]
    return partition.model_copy(
        update={**summaries(data, objective, rows), "refusals": (*partition.refusals, *refusals)}
    )
