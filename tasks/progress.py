"""What is going on, told to whoever listens: the terminal, MLflow, a Prefect artifact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Event(NamedTuple):
    """Something a stage wants known: `started`, `finished`, or `progress` with its details.

    What was only waited for is `dropped`.
    """

    stage: str
    kind: str
    detail: dict[str, Any]


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


def tell(stage: str, kind: str, **detail: Any) -> None:
    """Tell every listener."""
    for listener in list(_listeners):
        listener(Event(stage, kind, detail))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called with every event until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
