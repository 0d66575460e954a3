"""Moments of numbers, combined over partitions in a fixed order so that every bit repeats."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.open import Frozen

T = TypeVar("T")


class Moments(Frozen):
    """Count, mean and sum of squared deviations of the finite numbers seen."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Moments":
        """Moments of a one-dimensional array; NaN is no value.

        Only elementwise operations and NumPy's pairwise sum, whose order depends on neither
        threads nor instruction set; a dot product would.
        """
        finite = values[np.isfinite(values)].astype(np.float64)
        if not len(finite):
            return cls()
        mean = float(np.sum(finite) / len(finite))
        return cls(count=len(finite), mean=mean, squares=float(np.sum((finite - mean) ** 2)))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both together (Chan, Golub, LeVeque 1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        difference = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + difference * other.count / count,
            squares=self.squares
            + other.squares
            + difference * difference * self.count * other.count / count,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 where all values are equal, so that scaling leaves them at 0."""
        deviation = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return deviation if deviation > 1e-9 * max(1.0, abs(self.mean)) else 1.0


def fold(items: Sequence[T], merge: Callable[[T, T], T]) -> T:
    """Combine neighbours pairwise until one is left: a tree whose shape is the number of items."""
    level = list(items)
    while len(level) > 1:
        pairs = [merge(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]
