"""The files that metrics are counted in, with room on the disk.

prometheus_client makes them of holes and maps them: on a full disk, whoever counts is killed.
"""

import os
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from deployments.serving.disk import allocate

FIRST_BYTES = 65_536
KINDS = ("counter", "histogram", "gauge_livesum")
"""Those of our metrics; a process has a file of each."""
_MORE = 32
"""Most bytes that an entry has besides its name."""


class Allocated(MmapedDict):
    """A file of values; one that finds no room is written when its metric counts on.

    Raises OSError when there is no room for the file itself.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        _reserve(Path(filename))
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def read_value(self, key: str) -> Any:
        try:
            return super().read_value(key)  # type: ignore[no-untyped-call]
        except OSError:
            return 0.0, 0.0

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        try:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        except OSError:  # the metric itself has the whole value, and writes that the next time
            return

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _MORE > self._capacity:
            allocate(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def begin(folder: Path) -> None:
    """Make the files of this process before anything is counted; raises OSError without room."""
    for kind in KINDS:
        _reserve(folder / f"{kind}_{os.getpid()}.db")


def install() -> None:
    """Have every metric made from now on counted in such files."""
    values.MmapedDict = Allocated  # type: ignore[attr-defined]


def _reserve(path: Path) -> None:
    with path.open("ab") as file:
        allocate(file.fileno(), FIRST_BYTES)
