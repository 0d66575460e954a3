"""Fixed slots by name in one file, mapped into every process that opens it.

The kernel keeps the pages when a process dies. All of the file is on disk before it is mapped.
"""

import mmap
import os
import weakref
from pathlib import Path

from deployments.serving.disk import allocate, written

NAME_BYTES = 64
"""What a slot begins with; of zeros where it is not taken yet."""
FIRST = 1024
"""Slots of a new file."""


class Slots:
    """The slots in `path`, each of `size` bytes; for those who hold a lock of their own.

    Raises ProtocolError 503 when there is no room on the disk.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        with written(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self.close = weakref.finalize(self, os.close, self._handle)
            allocate(self._handle, FIRST * size)
            self.map = mmap.mmap(self._handle, 0)
        self._places: dict[bytes, int] = {}

    def at(self, name: bytes) -> int:
        """Where in `map` the slot of that name is, taken if there was none: zeros after its name.

        Raises ProtocolError 503 when there is no room for one more.
        """
        found = self._places.get(name)
        return self._find(name) if found is None else found

    def _find(self, name: bytes) -> int:
        length = os.fstat(self._handle).st_size
        if length > len(self.map):  # another process has made room
            self.map.resize(length)
        for place in range(0, length - self._size + 1, self._size):
            taken = self.map[place : place + NAME_BYTES].rstrip(b"\0")
            if not taken:
                self.map[place : place + len(name)] = name
            elif taken != name:
                self._places[taken] = place
                continue
            self._places[name] = place
            return place
        with written(self._path):
            allocate(self._handle, 2 * length)
        return self._find(name)
