"""Pictures of a training and of its result, as PNG."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.objectives import Classification, Objective, Regression
from tasks.refs import HISTORY_FILE, Candidate, Weights
from tasks.store import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Answers:
    """What pictures need of the answers to rows that come a few at a time: two numbers a row."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._parts: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def add(self, predicted: NDArray[Any], target: NDArray[Any]) -> None:
        """Take the output [n, ...] for some rows and their target [n, ...]."""
        if isinstance(self.objective, Classification):
            self._parts.append((predicted.argmax(axis=1), target))
        elif isinstance(self.objective, Regression):
            self._parts.append((predicted, target))

    def whole(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Predicted and true class, or value, of all rows, [n] each."""
        predicted, target = zip(*self._parts, strict=True)
        return np.concatenate(predicted), np.concatenate(target)


def draw(objective: Objective, answers: Answers, weights: Weights) -> Iterator[tuple[str, bytes]]:
    """Title and PNG bytes: the learning curve, a confusion matrix or the residuals."""
    from matplotlib.figure import Figure

    history = json.loads(store().get_file(weights.manifest, HISTORY_FILE))
    figure = Figure((6, 3.5), layout="constrained")
    epochs = [entry["epoch"] for entry in history]
    left = figure.add_subplot(xlabel="epoch", ylabel="training loss")
    left.plot(epochs, [entry["loss"] for entry in history], "C0o-", label="training loss")
    right = left.twinx()
    name = objective.primary.name
    right.plot(epochs, [entry[name] for entry in history], "C1s-", label=f"validation {name}")
    right.set_ylabel(f"validation {name}")
    figure.legend(loc="outside upper center", ncols=2)
    yield "learning curve", _png(figure)
    if isinstance(objective, Classification):
        yield "confusion matrix", _confusion(objective, *answers.whole())
    elif isinstance(objective, Regression):
        yield "residuals", _residuals(*answers.whole())


def _confusion(objective: Classification, predicted: NDArray[Any], target: NDArray[Any]) -> bytes:
    from matplotlib.figure import Figure

    size = len(objective.labels)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (target, predicted), 1)
    figure = Figure((5, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    image = axes.imshow(np.log1p(counts), cmap="Blues")
    axes.set_xticks(range(size), objective.labels)
    axes.set_yticks(range(size), objective.labels)
    middle = image.get_clim()[1] / 2
    for row in range(size):
        for column in range(size):
            dark = np.log1p(counts[row, column]) > middle
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    return _png(figure)


def pareto(
    candidates: tuple[Candidate, ...], chosen: str, metric: str, cost: dict[str, dict[str, float]]
) -> bytes:
    """PNG of size against loss, and the front: no other form is smaller and loses no more."""
    from matplotlib.figure import Figure

    whole = [c for c in candidates if not c.collapsed]
    front = sorted(front_of(whole), key=lambda c: c.size)
    figure = Figure((6, 3.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="kilobytes", ylabel=f"loss of {metric}, %", xscale="log",
        title="collapsed: " + ", ".join(c.name for c in candidates if c.collapsed)
        if len(whole) < len(candidates) else "",
    )  # fmt: skip
    axes.step(
        [c.size / 1000 for c in front], [100 * c.loss for c in front], "C0--", where="post",
        linewidth=0.8,
    )  # fmt: skip
    for candidate in whole:
        place = (candidate.size / 1000, 100 * candidate.loss)
        axes.plot(*place, "C3*" if candidate.name == chosen else "C0o")
        spent = cost.get(candidate.name, {}).get("32", float("nan"))
        axes.annotate(
            f"{candidate.name}, {spent:.0f} us", place, textcoords="offset points",
            xytext=(4, 4), fontsize=8,
        )  # fmt: skip
    axes.margins(0.2)
    return _png(figure)


def front_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front: those than which no other is smaller, or loses less, at no price."""
    return [
        c
        for c in candidates
        if not any(
            o.size <= c.size and o.loss <= c.loss and (o.size, o.loss) != (c.size, c.loss)
            for o in candidates
        )
    ]


def _residuals(predicted: NDArray[Any], target: NDArray[Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure((7, 3.5), layout="constrained")
    scatter, spread = figure.subplots(1, 2)
    scatter.hexbin(target, predicted, gridsize=60, bins="log", cmap="Blues")
    ends = [float(target.min()), float(target.max())]
    scatter.plot(ends, ends, "k--", linewidth=0.8)
    scatter.set(xlabel="true", ylabel="predicted")
    errors = predicted - target
    limit = float(np.quantile(np.abs(errors), 0.995))
    spread.hist(errors, bins=80, range=(-limit, limit))
    spread.set(xlabel="predicted - true", ylabel="rows")
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    packed = io.BytesIO()
    figure.savefig(packed, format="png", dpi=110, metadata={"Software": None})
    return packed.getvalue()
