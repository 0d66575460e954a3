"""The cleaned data of a run: its partitions, and the rows of a split as tensors."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.data import Tensors
from models.digests import Digest
from models.open import Frozen
from models.padding import joined as stacked
from models.signature import Signature
from models.splits import Subset
from tasks.refs import Dataset, Refusal
from tasks.snapshot import address
from tasks.store import content_key, store, table_key


class Partition(Frozen):
    """One raw object, cleaned: its kept rows, its quarantine, and statistics for every label.

    The table `rows` has the columns row (position in the raw object), identity (XXH3-64), split
    (its label), the features and the target. The table `refused` has row, field and reason.
    """

    name: str
    sha256: str
    rows: Digest
    identities: Digest
    """The column identity alone, as little-endian uint64 bytes."""
    refused: Digest
    refusals: tuple[Refusal, ...]
    labels: dict[str, int]
    features: dict[str, dict[str, Any]]
    targets: dict[str, dict[str, Any]]

    @property
    def stored(self) -> tuple[str, ...]:
        """The store's keys of everything the record names."""
        return table_key(self.rows), table_key(self.refused), content_key(self.identities)

    @property
    def address(self) -> Digest:
        """What the partition was made from."""
        return address(self.name, self.sha256)


class DatasetManifest(Frozen):
    """What a dataset is a function of, and which rows of which partition are in which split."""

    partitions: tuple[Partition, ...]
    excluded: dict[str, tuple[int, ...]]
    """Partition name -> positions, in its table, of records an earlier partition holds."""
    splits: dict[str, Subset]
    """Label -> split."""
    signature: Signature
    kind: Literal["modelmint.dataset/1"] = "modelmint.dataset/1"


class Kept(BaseModel):
    """The kept rows of a partition: of a record with statistics, which can outweigh the rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: Digest
    labels: dict[str, int]


class KeptRows(BaseModel):
    """What reading the rows takes of a dataset's manifest; the rest of it is not made objects."""

    model_config = ConfigDict(frozen=True)

    partitions: tuple[Kept, ...]
    excluded: dict[str, tuple[int, ...]]
    splits: dict[str, Subset]


def kept_rows(dataset: Dataset) -> KeptRows:
    """Where the rows of the dataset are."""
    return KeptRows.model_validate_json(store().get_content(dataset.digest))


def manifest(dataset: Dataset) -> DatasetManifest:
    """The manifest a dataset refers to."""
    return DatasetManifest.model_validate_json(store().get_content(dataset.digest))


def partitions(dataset: Dataset, subset: Subset) -> Iterator[pl.DataFrame]:
    """The rows of one split, a table for each partition, in canonical order."""
    found = kept_rows(dataset)
    labels = [label for label, split in found.splits.items() if split == subset]
    for partition in found.partitions:
        if not set(labels) & set(partition.labels):
            continue
        table = without(store().get_table(partition.rows), found.excluded.get(partition.name, ()))
        yield table.filter(pl.col("split").is_in(labels))


def without(table: pl.DataFrame, positions: Sequence[int]) -> pl.DataFrame:
    """The table less the rows at the positions."""
    kept = np.ones(table.height, np.bool_)
    kept[list(positions)] = False
    return table.filter(kept)


def chunks(dataset: Dataset, subset: Subset, size: int) -> Iterator[pl.DataFrame]:
    """The rows of one split in canonical order, `size` at a time whatever the partitions are."""
    waiting: list[pl.DataFrame] = []
    for table in partitions(dataset, subset):
        waiting.append(table)
        if sum(part.height for part in waiting) >= size:
            whole = pl.concat(waiting)
            ends = range(size, whole.height + 1, size)
            yield from (whole.slice(end - size, size) for end in ends)
            waiting = [whole.slice(ends[-1])]
    if any(part.height for part in waiting):
        yield pl.concat(waiting)


def spread(dataset: Dataset, subset: Subset, most: int) -> pl.DataFrame:
    """At most so many rows of one split, in canonical order and evenly spread over it."""
    stride = max(1, -(-dataset.rows[subset] // most))
    chosen, first = [], 0
    for table in partitions(dataset, subset):
        chosen.append(table.gather_every(stride, -first % stride))
        first += table.height
    return pl.concat(chosen)


def rows(dataset: Dataset, subset: Subset) -> pl.DataFrame:
    """All rows of one split in one table."""
    return pl.concat(partitions(dataset, subset))


def unseen(other: Dataset, dataset: Dataset) -> NDArray[np.bool_]:
    """Which test rows of a dataset no model of the other has learnt from, bool [n].

    From its training rows follow the weights, from its validation rows their choice.
    """
    tests = np.concatenate(list(_identities(dataset, "test")))
    if other.digest == dataset.digest:
        return np.ones(len(tests), np.bool_)
    seen = [np.empty(0, np.uint64)]
    for subset in ("train", "validation"):
        seen += [known[np.isin(known, tests)] for known in _identities(other, subset)]
    return ~np.isin(tests, np.concatenate(seen))


def _identities(dataset: Dataset, subset: Subset) -> Iterator[NDArray[np.uint64]]:
    for table in partitions(dataset, subset):
        yield table.get_column("identity").to_numpy()


def tensors(dataset: Dataset, subset: Subset) -> tuple[Tensors, NDArray[Any]]:
    """The encoded inputs and the target of one split, in canonical order."""
    signature = dataset.signature
    inputs: list[Tensors] = []
    targets: list[NDArray[Any]] = []
    for table in partitions(dataset, subset):
        inputs.append(signature.features.encode(table))
        targets.append(signature.objective.encode(table))
    joined = {
        spec.name: stacked([t[spec.name] for t in inputs]) for spec in signature.features.inputs
    }
    return joined, stacked(targets)
