"""Which versions a worker keeps in memory when not all of them fit.

What is in production, was there last, or is being tried always stays: it must answer at once. Of
the others the least recently used goes first; its folder stays, and it is opened again when asked.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deployments.serving.folder import version_folder
from deployments.serving.line import Line
from deployments.serving.state import State
from models.signature import network_file

COPIES = 2
"""How often a network is held at most: as ONNX Runtime keeps it, and packed for the processor."""
EACH = 4_900_000
"""Bytes that a version takes beside that, however small it is: what one of 11 kB took in a worker,
`megabytes_per_version` of `benchmarks/results/swaps.json`."""


class Memory:
    """A budget in bytes for the networks of one worker; None is no limit."""

    def __init__(self, root: Path, budget: int | None) -> None:
        self._root, self._budget = root, budget
        self._used: dict[str, float] = {}

    def touch(self, digest: str) -> None:
        """Note that a version was asked for now."""
        if self._budget is not None:
            self._used[digest] = time.monotonic()

    def cost(self, name: str, number: str) -> int:
        """Bytes that a version is counted with."""
        try:
            folder = version_folder(self._root, name, number)
            there = network_file({file.name for file in folder.iterdir()})
            return EACH + COPIES * (folder / there).stat().st_size
        except OSError:  # it cannot be opened either
            return 0

    def room(self, lines: Mapping[str, list[str]], name: str, number: str) -> bool:
        """Whether one more version fits beside those, given by line."""
        if self._budget is None:
            return True
        held = sum(self.cost(line, one) for line, numbers in lines.items() for one in numbers)
        return held + self.cost(name, number) <= self._budget

    def excess(self, lines: Mapping[str, Line]) -> list[tuple[str, str]]:
        """Line and number of the versions that go, so that the rest fits as far as it can."""
        if self._budget is None:
            return []
        held = sum(self.cost(name, one) for name, line in lines.items() for one in line.versions)
        idle = [
            (self._used.get(served.digest, 0.0), name, number)
            for name, line in lines.items()
            for number, served in line.versions.items()
            if number not in line.needed
        ]
        gone = []
        for _, name, number in sorted(idle):
            if held <= self._budget:
                break
            held -= self.cost(name, number)
            gone.append((name, number))
        return gone


def in_order(state: State) -> Iterator[tuple[str, str]]:
    """Line and number: first what is in production, then what must be in memory, newest first."""
    ranked = []
    for name, line in state.lines.items():
        needed = line.needed
        for number in line.versions:
            rank = (number != line.default, number not in needed, -int(number))
            ranked.append((rank, name, number))
    for _, name, number in sorted(ranked):
        yield name, number
