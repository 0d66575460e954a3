"""What a line predicts: the target, its metrics, its baselines, and what an answer looks like.

NumPy only: serving and the gate use these classes without torch. The losses that train them are
in `models.layers`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.data import Check, Features, Tensors
from models.open import Frozen, Open
from models.statistics import Moments, fold
from models.tensors import TensorSpec

Floats = NDArray[np.floating[Any]]
MOST_VALUES = 1 << 22
Better = Literal["higher", "lower"]

Run = Callable[[Tensors], Mapping[str, NDArray[Any]]]
"""A served network: tensors to outputs, both by name."""


class NotFiniteError(ValueError):
    """The network answers the given values with what is no number."""


class Primary(Frozen):
    """The metric a line is judged by."""

    name: str
    better: Better

    def loss(self, value: float, reference: float) -> float:
        """How much worse `value` is than `reference`, as a fraction of `reference`."""
        difference = reference - value if self.better == "higher" else value - reference
        return difference / max(abs(reference), 1e-12)


class Objective(Open):
    """What a line predicts. A *fitted* objective also knows what the training rows told it."""

    target: str
    """The column to predict."""
    primary: Primary
    directions: ClassVar[Mapping[str, Better]] = {}
    """Which values of a metric are better; the primary says so itself."""

    @abstractmethod
    def checks(self) -> Sequence[Check]:
        """The conditions the target of every row must meet."""

    @abstractmethod
    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        """Statistics of some rows' targets as a JSON value, to be combined by `fit`."""

    @abstractmethod
    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Self:
        """This objective, fitted to the summaries of the training rows, in canonical order.

        Raises ValueError when the training rows cannot teach it.
        """

    def beside(self, features: Features) -> Self:
        """This objective with what it needs of the fitted features."""
        del features
        return self

    @property
    @abstractmethod
    def output(self) -> TensorSpec:
        """The tensor a served model answers with."""

    @property
    def further(self) -> tuple[TensorSpec, ...]:
        """Tensors that a served model gives beside it, for programs; nothing judges them."""
        return ()

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of values the network computes for a row."""

    def at_once(self, most: int) -> int:
        """How many rows, of `most`, to answer at a time: their output stays below some 16 MB."""
        return max(1, min(most, MOST_VALUES // self.values))

    @property
    def values(self) -> int:
        """Values of a row's output, or of a position's where rows differ in length."""
        return self.width

    @abstractmethod
    def encode(self, rows: pl.DataFrame) -> NDArray[Any]:
        """The target of every row: float32 [n] for a regression, int64 [n] for classes."""

    @abstractmethod
    def losses(self, predicted: Floats, target: NDArray[Any]) -> dict[str, Floats]:
        """Per-row scores, float64 [n] each; metrics and paired tests are functions of them."""

    @abstractmethod
    def metrics(self, losses: Mapping[str, Floats]) -> dict[str, Any]:
        """The metrics of rows whose losses are [..., n]; each is [...], a float for plain [n].

        `primary.name` is one of them.
        """

    def better(self, name: str) -> Better:
        """Which values of the metric are better; raises ValueError where the class does not say."""
        if name == self.primary.name:
            return self.primary.better
        if name not in self.directions:
            raise ValueError(
                f"{type(self).__name__}.directions does not say which values of {name!r} are"
                ' better: add "higher" or "lower"'
            )
        return self.directions[name]

    def incomparable(self, other: "Objective") -> str | None:
        """Why losses of the same rows under another objective cannot stand beside ours, if so."""
        return None if other.output == self.output else "its output has another type or shape"

    def unlike(self, ours: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> str | None:
        """Why two models' losses, [n] each, are not of the same, if so."""
        del ours, theirs
        return None

    def measure(self, predicted: Floats, target: NDArray[Any]) -> dict[str, float]:
        """The metrics of predictions, float [n, ...], for their targets."""
        found = self.metrics(self.losses(predicted, target))
        return {name: float(value) for name, value in found.items()}

    def closeness(self, found: Floats, expected: Floats) -> float:
        """Largest difference of two outputs, relative to the spread of the expected one."""
        spread = float(np.max(np.abs(expected))) or 1.0
        return float(np.max(np.abs(found - expected))) / spread

    @abstractmethod
    def constant(self, target: NDArray[Any], count: int) -> tuple[str, Floats]:
        """Name and predictions, for `count` rows, of the best constant for this target."""

    @abstractmethod
    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        """What a person reads, one record for each row of the served output."""

    steps: ClassVar[bool] = False
    """Whether an answer is a text, written token by token: see `models.language`."""

    def table(self, output: NDArray[Any]) -> pl.DataFrame:
        """The same as columns, for files of many rows."""
        return pl.DataFrame(self.answer(output))


class Regression(Objective):
    """One number per row."""

    unit: str
    """Unit of the target, for people."""
    low: float | None = None
    """Smallest plausible target; a row below is quarantined."""
    high: float | None = None
    """Largest plausible target; a row above is quarantined."""
    mean: float = 0.0
    """Mean of the training targets (fitted)."""
    deviation: float = Field(1.0, gt=0)
    """Standard deviation of the training targets (fitted)."""
    primary: Primary = Primary(name="rmse", better="lower")
    directions: ClassVar[Mapping[str, Better]] = {"rmse": "lower", "mae": "lower"}

    def checks(self) -> Sequence[Check]:
        target = pl.col(self.target)
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return [
            Check(self.target, "missing", target.is_not_null()),
            Check(self.target, "not finite", target.is_finite()),
            Check(
                self.target,
                f"not within {low:g} to {high:g} {self.unit}",
                target.is_between(low, high),
            ),
        ]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        return Moments.of(rows.get_column(self.target).cast(pl.Float64).to_numpy()).model_dump()

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Self:
        total = fold([Moments.model_validate(s) for s in summaries], Moments.merge)
        return self.model_copy(update={"mean": total.mean, "deviation": total.deviation})

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(name="prediction", datatype="FP32", shape=(-1,))

    @property
    def width(self) -> int:
        return 1

    def encode(self, rows: pl.DataFrame) -> NDArray[Any]:
        return rows.get_column(self.target).cast(pl.Float32).to_numpy()

    def losses(self, predicted: Floats, target: NDArray[Any]) -> dict[str, Floats]:
        error = predicted.astype(np.float64).reshape(-1) - target.astype(np.float64)
        return {"squared": error**2, "absolute": np.abs(error)}

    def metrics(self, losses: Mapping[str, Floats]) -> dict[str, Any]:
        return {
            "rmse": np.sqrt(np.mean(losses["squared"], axis=-1)),
            "mae": np.mean(losses["absolute"], axis=-1),
        }

    def constant(self, target: NDArray[Any], count: int) -> tuple[str, Floats]:
        return "mean", np.full(count, np.mean(target, dtype=np.float64))

    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        return [{self.target: round(float(v), 4), "unit": self.unit} for v in output.reshape(-1)]

    def table(self, output: NDArray[Any]) -> pl.DataFrame:
        """The number, Float32, under the target's name."""
        return pl.DataFrame({self.target: output.reshape(-1).astype(np.float32)})


class Classification(Objective):
    """One class per row."""

    labels: tuple[str, ...] = Field(min_length=2)
    """The classes, in the order of the model's output."""
    primary: Primary = Primary(name="accuracy", better="higher")
    directions: ClassVar[Mapping[str, Better]] = {"accuracy": "higher", "log_loss": "lower"}

    def checks(self) -> Sequence[Check]:
        target = pl.col(self.target)
        return [
            Check(self.target, "missing", target.is_not_null()),
            Check(self.target, "not one of the line's classes", target.is_in(list(self.labels))),
        ]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        return dict(rows.get_column(self.target).value_counts().sort(self.target).iter_rows())

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Self:
        seen = set().union(*summaries)
        absent = [label for label in self.labels if label not in seen]
        if absent:
            raise ValueError(f"no training row has the class {', '.join(absent)}: land some")
        return self

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(self.labels)))

    @property
    def width(self) -> int:
        return len(self.labels)

    def encode(self, rows: pl.DataFrame) -> NDArray[Any]:
        return (
            rows.get_column(self.target)
            .replace_strict(list(self.labels), range(len(self.labels)), return_dtype=pl.Int64)
            .to_numpy()
        )

    def losses(self, predicted: Floats, target: NDArray[Any]) -> dict[str, Floats]:
        chosen = predicted[np.arange(len(target)), target].astype(np.float64)
        return {
            "correct": (predicted.argmax(axis=1) == target).astype(np.float64),
            "log_loss": -np.log(np.clip(chosen, 1e-12, 1.0)),
        }

    def metrics(self, losses: Mapping[str, Floats]) -> dict[str, Any]:
        return {
            "accuracy": np.mean(losses["correct"], axis=-1),
            "log_loss": np.mean(losses["log_loss"], axis=-1),
        }

    def constant(self, target: NDArray[Any], count: int) -> tuple[str, Floats]:
        shares = np.bincount(target, minlength=self.width) / len(target)
        return "majority", np.tile(shares, (count, 1))

    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        best = output.argmax(axis=1)
        return [
            {
                self.target: self.labels[index],
                "probability": round(float(row[index]), 6),
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(self.labels, row, strict=True)
                },
            }
            for row, index in zip(output, best, strict=True)
        ]

    def table(self, output: NDArray[Any]) -> pl.DataFrame:
        """The class, its probability, and a struct of every class's, Float32."""
        best = output.argmax(axis=1)
        classes = pl.Series(self.labels, dtype=pl.Enum(self.labels))
        each = {label: output[:, index] for index, label in enumerate(self.labels)}
        return pl.DataFrame(
            {
                self.target: classes.gather(best).cast(pl.String),
                "probability": output[np.arange(len(best)), best],
                "probabilities": pl.DataFrame(each).to_struct(),
            }
        )
