"""Rows of different length in one tensor: zeros lie behind the shorter ones.

The input called `frames` says how many positions of a row count; a line whose rows all have one
length has no such input, and nothing here changes its tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LENGTH = "frames"
LENGTHY_BATCH = 16
"""Rows of different length computed together: of like length, so that little is padding."""
T = TypeVar("T", bound=Any)


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all parts, [n, ...]; where lengths differ, zeros fill up the shorter ones."""
    longest = tuple(max(found) for found in zip(*(part.shape[1:] for part in parts), strict=True))
    if all(part.shape[1:] == longest for part in parts):
        return np.concatenate(parts)
    whole = np.zeros((sum(map(len, parts)), *longest), parts[0].dtype)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return whole


def trimmed(inputs: Mapping[str, T]) -> dict[str, T]:
    """The inputs, arrays or torch tensors, less the positions that are padding in every row."""
    if LENGTH not in inputs:
        return dict(inputs)
    longest = int(inputs[LENGTH].max())
    return {name: t if name == LENGTH else t[:, :longest] for name, t in inputs.items()}


def pieces(
    inputs: Mapping[str, NDArray[Any]], size: int
) -> Iterator[tuple[Any, dict[str, NDArray[Any]]]]:
    """Which rows, at most `size` at a time, and their inputs; rows of like length together."""
    count = len(next(iter(inputs.values())))
    if LENGTH not in inputs:
        for start in range(0, count, size):
            chosen = slice(start, start + size)
            yield chosen, {name: t[chosen] for name, t in inputs.items()}
        return
    ranked, size = np.argsort(inputs[LENGTH], kind="stable"), min(size, LENGTHY_BATCH)
    for start in range(0, count, size):
        rows = ranked[start : start + size]
        yield rows, trimmed({name: t[rows] for name, t in inputs.items()})


def computed(
    compute: Callable[[dict[str, NDArray[Any]]], NDArray[Any]],
    inputs: Mapping[str, NDArray[Any]],
    size: int,
) -> NDArray[Any]:
    """What `compute` gives for all rows, in their order, at most `size` computed at a time."""
    found = [(rows, compute(part)) for rows, part in pieces(inputs, size)]
    whole = joined([part for _, part in found])
    return whole[np.argsort(np.concatenate([r for r, _ in found]))] if LENGTH in inputs else whole
