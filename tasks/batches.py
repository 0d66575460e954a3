"""Training rows in batches: the order is a function of seed and epoch, the memory of a window.

A source is read in blocks, its cleaned partitions. Every epoch puts the blocks into a random order
and cuts that into windows of a few megabytes; the rows of a window are shuffled together, and the
next window is read while this one trains. All rows of a source that fits one window are shuffled
together, so that holding it in memory instead of reading it again changes no bit.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data import Tensors
from models.padding import LENGTH, joined, trimmed
from models.splits import Subset
from tasks.dataset import kept_rows, without
from tasks.optimization import generator
from tasks.refs import Dataset
from tasks.store import store

Rows = dict[str, Tensor]
Encoded = tuple[Tensors, NDArray[Any]]
BLUR = 0.3
"""How much longer a row may count where rows of like length are brought together."""


class Source(Protocol):
    """Encoded rows that can be read again and again, a block at a time."""

    @property
    def counts(self) -> Sequence[int]:
        """Rows of every block."""

    @property
    def row_bytes(self) -> float:
        """Bytes of an encoded row."""

    def read(self, block: int) -> Encoded:
        """Inputs by name and target, each [counts[block], ...]."""


class Held:
    """Rows in memory, as one block."""

    def __init__(self, inputs: Tensors, target: NDArray[Any]) -> None:
        self.encoded = inputs, target
        self.counts = (len(target),)
        self.row_bytes = _bytes(self.encoded) / max(1, len(target))

    def read(self, block: int) -> Encoded:
        """All rows."""
        del block
        return self.encoded


class Stored:
    """The rows of one split of a dataset, read from the store; a block is a partition."""

    def __init__(self, dataset: Dataset, subset: Subset) -> None:
        found = kept_rows(dataset)
        self.signature = dataset.signature
        self.labels = [label for label, split in found.splits.items() if split == subset]
        parts = [p for p in found.partitions if set(self.labels) & set(p.labels)]
        self.counts = tuple(sum(p.labels.get(label, 0) for label in self.labels) for p in parts)
        self.parts = [(p.rows, found.excluded.get(p.name, ())) for p in parts]

    @cached_property
    def row_bytes(self) -> float:
        """Bytes of an encoded row, as the first block has them."""
        return _bytes(self.read(0)) / max(1, self.counts[0])

    def read(self, block: int) -> Encoded:
        """The partition's rows of the split, encoded."""
        rows, excluded = self.parts[block]
        table = without(store().get_table(rows), excluded)
        table = table.filter(pl.col("split").is_in(self.labels))
        return self.signature.features.encode(table), self.signature.objective.encode(table)


def settled(source: Source, megabytes: float) -> Source:
    """The source in memory if all of it fits one window, or as it is."""
    if sum(source.counts) > capacity(source, megabytes):
        return source
    return Held(*_joined([source.read(block) for block in range(len(source.counts))]))


def capacity(source: Source, megabytes: float) -> int:
    """Rows of the source in a window of so many 1e6 bytes."""
    return max(1, int(megabytes * 1e6 / source.row_bytes)) if sum(source.counts) else 1


def in_order(source: Source, size: int) -> Iterator[Encoded]:
    """All rows in canonical order, `size` at a time whatever the blocks are; the last are fewer."""
    waiting: list[Encoded] = []
    count = 0
    for block in range(len(source.counts)):
        waiting.append(source.read(block))
        count += len(waiting[-1][1])
        if count >= size:
            inputs, target = _joined(waiting)
            whole = count - count % size
            for start in range(0, whole, size):
                end = start + size
                yield {n: t[start:end] for n, t in inputs.items()}, target[start:end]
            waiting = [({n: t[whole:].copy() for n, t in inputs.items()}, target[whole:].copy())]
            count -= whole
    if count:
        yield _joined(waiting)


class _Window(NamedTuple):
    """Some blocks of an epoch, and where their rows begin among all of it."""

    number: int
    blocks: tuple[int, ...]
    start: int
    rows: int


class Batches:
    """Batches of one size in the order of an epoch; rows that fill no last batch are left out.

    A batch is a multiple of `parts` rows for each of `ranks`, of which `rank` gets its share.
    Raises ValueError where the source has too few.
    """

    def __init__(
        self, source: Source, size: int, seed: int, *, megabytes: float = 64, parts: int = 1,
        device: torch.device | None = None, rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self.source, self.seed = source, seed
        parts *= ranks
        self.device = device or torch.device("cpu")
        count = sum(source.counts)
        # A last, shorter batch would weigh its rows more than others.
        self.size = min(size, count) // parts * parts
        if not self.size:
            raise ValueError(f"{count} training rows cannot be cut into {parts} parts of a batch")
        self.steps = count // self.size
        share = self.size // ranks
        self.share = slice(rank * share, rank * share + share)
        self.capacity = capacity(source, megabytes)
        self._held: tuple[Rows, Tensor] | None = None

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Rows, Tensor]]:
        """Inputs and target of the epoch's batches from step `first` on, on the device."""
        begin, end = first * self.size, self.steps * self.size
        plan = [w for w in self._plan(epoch) if w.start + w.rows > begin and w.start < end]
        rest: tuple[Rows, Tensor] | None = None
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._load, plan[0].blocks) if plan else None
            for index, window in enumerate(plan):
                assert following is not None
                rows = following.result()
                if index + 1 < len(plan):
                    following = reader.submit(self._load, plan[index + 1].blocks)
                use = f"order {window.number}" if window.number else "order"
                order = torch.randperm(window.rows, generator=generator(self.seed, epoch, use))
                if LENGTH in rows[0]:
                    random = generator(self.seed, epoch, f"{use} by length")
                    order = _alike(order, rows[0][LENGTH], self.size, window.start, random)
                order = order[max(0, begin - window.start) : end - window.start]
                while len(order):
                    wanted = self.size - (len(rest[1]) if rest else 0)
                    batch = _chosen(rows, order[:wanted].to(self.device))
                    order = order[wanted:]
                    batch = _after(rest, batch) if rest else batch
                    rest = None
                    if len(batch[1]) == self.size:
                        yield self._shared(batch)
                    else:
                        rest = batch
                del rows

    def _shared(self, batch: tuple[Rows, Tensor]) -> tuple[Rows, Tensor]:
        rows, target = batch
        share = {name: tensor[self.share] for name, tensor in rows.items()}
        return trimmed(share), target[self.share]

    def _plan(self, epoch: int) -> list[_Window]:
        counts = self.source.counts
        if sum(counts) <= self.capacity:
            return [_Window(0, tuple(range(len(counts))), 0, sum(counts))]
        order = torch.randperm(len(counts), generator=generator(self.seed, epoch, "blocks"))
        groups: list[list[int]] = []
        filled = self.capacity + 1
        for block in order.tolist():
            if filled + counts[block] > self.capacity:
                groups.append([])
                filled = 0
            groups[-1].append(block)
            filled += counts[block]
        plan, start = [], 0
        for number, blocks in enumerate(groups):
            rows = sum(counts[block] for block in blocks)
            plan.append(_Window(number, tuple(blocks), start, rows))
            start += rows
        return plan

    def _load(self, blocks: tuple[int, ...]) -> tuple[Rows, Tensor]:
        if self._held is not None:
            return self._held
        inputs, target = _joined([self.source.read(block) for block in blocks])
        found = {n: self._moved(t) for n, t in inputs.items()}, self._moved(target)
        if len(blocks) == len(self.source.counts):
            self._held = found
        return found

    def _moved(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.require(array, requirements="W"))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _chosen(rows: tuple[Rows, Tensor], chosen: Tensor) -> tuple[Rows, Tensor]:
    inputs, target = rows
    return {n: t.index_select(0, chosen) for n, t in inputs.items()}, target.index_select(0, chosen)


def _after(rest: tuple[Rows, Tensor], batch: tuple[Rows, Tensor]) -> tuple[Rows, Tensor]:
    inputs = {name: _cat(rest[0][name], tensor) for name, tensor in batch[0].items()}
    return inputs, _cat(rest[1], batch[1])


def _cat(first: Tensor, second: Tensor) -> Tensor:
    """Rows of both; zeros fill up the shorter ones."""
    if first.shape[1:] == second.shape[1:]:
        return torch.cat([first, second])
    shape = (max(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True))
    whole = first.new_zeros(len(first) + len(second), *shape)
    for start, part in ((0, first), (len(first), second)):
        whole[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
    return whole


def _alike(
    order: Tensor, lengths: Tensor, size: int, start: int, random: torch.Generator
) -> Tensor:
    """The order with rows of like length in one batch: most of a mixed one would be padding.

    Batches come in random order and are of other rows in every epoch. Rows that belong to a batch
    of another window keep their place; the first is number `start` of the epoch.
    """
    first = -start % size
    count = max(0, len(order) - first) // size
    middle = order[first : first + count * size]
    blurred = lengths.cpu()[middle] * (1 + BLUR * torch.rand(len(middle), generator=random))
    batches = middle[blurred.argsort(stable=True)].view(count, size)
    batches = batches[torch.randperm(count, generator=random)]
    return torch.cat([order[:first], batches.flatten(), order[first + count * size :]])


def _joined(parts: Sequence[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    names = parts[0][0]
    inputs = {name: joined([part[0][name] for part in parts]) for name in names}
    return inputs, joined([part[1] for part in parts])


def _bytes(encoded: Encoded) -> int:
    return encoded[1].nbytes + sum(tensor.nbytes for tensor in encoded[0].values())
