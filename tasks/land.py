"""Land a line's example data in the bucket, as anyone lands data: by putting objects there."""

from typing import Any

from models.spec import Line
from tasks.snapshot import raw_prefix
from tasks.store import store


class NoExampleError(LookupError):
    """The line brings no example data, or not that slice of it."""


def is_empty(line: Line) -> bool:
    """Whether nothing is below the line's prefix."""
    return next(store().list(raw_prefix(line.data)), None) is None


def land(line: Line, part: str | None = None) -> list[dict[str, Any]]:
    """Put one slice, or the default ones, below the line's prefix; names and sizes in bytes.

    Raises NoExampleError.
    """
    example = line.example
    if example is None:
        raise NoExampleError(
            f"line {line.name} brings no example data: put your own below"
            f" {store().uri(raw_prefix(line.data))}"
        )
    if part is not None and part not in example.slices:
        raise NoExampleError(
            f"line {line.name} has no slice {part!r}; it has {', '.join(example.slices)}"
        )
    landed: dict[str, int] = {}
    for chosen in [part] if part is not None else example.default:
        for name, content in example.load(chosen):
            if name not in landed:
                store().put(raw_prefix(line.data) + name, content)
                landed[name] = len(content)
    return [{"object": name, "bytes": size} for name, size in landed.items()]
