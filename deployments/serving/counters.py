"""Named whole numbers in one small file, exact across the workers of a server."""

import fcntl
import mmap
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deployments.serving.disk import allocate


class Counters:
    """The counters kept in `path`, mapped into every process that opens it; thread-safe.

    The kernel keeps the page, and frees the lock, when a process dies, so nothing is lost. Raises
    OSError when there is no room for it on the disk.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._names = {name: 8 * at for at, name in enumerate(names)}
        self._threads = threading.Lock()
        self._file = path.open("a+b")
        size = 8 * len(names)
        allocate(self._file.fileno(), size)
        self._map = mmap.mmap(self._file.fileno(), size)

    def add(self, **changes: int) -> None:
        """Count each of the named up."""
        with self._alone():
            for name, change in changes.items():
                self._put(name, self._get(name) + change)

    def top(self, name: str, value: int) -> None:
        """Keep the largest value that was ever given."""
        with self._alone():
            self._put(name, max(self._get(name), value))

    def read(self) -> dict[str, int]:
        """All of them at one moment."""
        with self._alone():
            return {name: self._get(name) for name in self._names}

    def _get(self, name: str) -> int:
        found: int = struct.unpack_from("<q", self._map, self._names[name])[0]
        return found

    def _put(self, name: str, value: int) -> None:
        struct.pack_into("<q", self._map, self._names[name], value)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._threads:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
