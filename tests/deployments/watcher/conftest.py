import pytest

from deployments.watcher import line as line_module
from deployments.watcher import watchdog as watchdog_module


class Clock:
    """A monotonic clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock the watcher waits by."""
    clock = Clock()
    for module in (line_module, watchdog_module):
        monkeypatch.setattr(module, "time", clock)
    return clock
