"""What a hyperparameter search may change: settings of a line, each with a range or a choice.

In words: `training.optimizer.lr=1e-4..1e-2`, `training.clip=1..50:linear`, `model.size=small,base`.
"""

import json
from collections.abc import Iterable

from pydantic import Field, JsonValue, ValidationError, model_validator

from models.open import Frozen
from models.spec import Line

# A range whose ends are so far apart is searched by its logarithm.
DECADE = 10.0


class Range(Frozen):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Whether the logarithm is searched evenly, or the number itself."""
    whole: bool = False
    """Whether only whole numbers count."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"{self.low:g}..{self.high:g} is no range: the first must be smaller")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.low:g}..{self.high:g} has no logarithm: say :linear")
        return self


class Choice(Frozen):
    """One of these values."""

    values: tuple[str | int | float | bool, ...] = Field(min_length=2)


Space = dict[str, Range | Choice]
"""By path of the setting, as in `training.optimizer.lr`."""


def of_line(line: Line) -> Space:
    """What is searched when nothing is said: learning rate, decay, batch size, and dropout."""
    training, optimizer = line.training, line.training.optimizer
    sizes = (training.batch_size // 2, training.batch_size, training.batch_size * 2)
    parts = training.accumulate * training.ranks
    found: Space = {
        "training.optimizer.lr": Range(
            low=optimizer.lr / 10, high=min(10.0, optimizer.lr * 10), log=True
        ),
        "training.optimizer.weight_decay": Range(low=1e-4, high=0.3, log=True),
        "training.batch_size": Choice(values=tuple(s for s in sizes if s and s % parts == 0)),
    }
    if "dropout" in type(line.model).model_fields:
        found["model.dropout"] = Range(low=0.0, high=0.5)
    return found


def parsed(words: Iterable[str]) -> Space:
    """The space of words `path=low..high[:log|:linear]` or `path=a,b`; raises ValueError."""
    found: Space = {}
    for word in words:
        path, _, values = word.partition("=")
        first, dots, rest = values.partition("..")
        try:
            if not dots:
                choices = tuple(_value(text) for text in values.split(","))
                found[path] = Choice.model_validate({"values": choices})
                continue
            last, _, scale = rest.partition(":")
            if scale not in ("", "log", "linear"):
                raise ValueError(f"{scale!r} is neither log nor linear")
            low, high = float(first), float(last)
            whole = "." not in first and "." not in last and "e" not in values.lower()
            wide = low > 0 and high / low >= DECADE
            found[path] = Range(
                low=low, high=high, log=scale == "log" or (not scale and wide), whole=whole
            )
        except ValueError as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ValueError(
                f"--over {word}: expected section.field=low..high or section.field=a,b: {said}"
            ) from None
    return found


def _value(text: str) -> JsonValue:
    try:
        found: JsonValue = json.loads(text)
    except json.JSONDecodeError:
        return text
    return found
