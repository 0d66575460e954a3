"""Which version answered which request: one line of JSON each, without what was asked or answered.

Every worker appends to a file of its own and begins another when that is large; the oldest go when
all together are. What was written in the last quarter of a second is lost when a worker is killed.
"""

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

import orjson

FLUSH_SECONDS = 0.25
FILE_BYTES = 16_000_000
TOTAL_BYTES = 256_000_000
"""About a million requests."""
FOUND = 20
"""Largest number of entries that one request id is answered with, the newest."""


class Journal:
    """The journal below `folder`; thread-safe."""

    def __init__(
        self, folder: Path, file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._file_bytes, self._total = folder, file_bytes, total_bytes
        self._lines: deque[bytes] = deque()
        self._writing = threading.Lock()
        self._file: IO[bytes] | None = None
        threading.Thread(target=self._keep_writing, name="journal", daemon=True).start()

    def add(self, **entry: Any) -> None:
        """Note one request; costs no system call."""
        self._lines.append(orjson.dumps(entry))

    def flush(self) -> None:
        """Write what was noted."""
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines:
                return
            if self._file is None or self._file.tell() > self._file_bytes:
                self._file = self._begun()
            self._file.write(b"\n".join(lines) + b"\n")

    def find(self, request: str) -> list[dict[str, Any]]:
        """The newest entries of a request id, oldest first; a client may use one id again."""
        self.flush()
        needle = b'"request":' + orjson.dumps(request)
        found: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.jsonl"), reverse=True):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # it was the oldest
                continue
            if needle in content:
                lines = [line for line in content.splitlines() if needle in line]
                entries = [orjson.loads(line) for line in lines if line.endswith(b"}")]
                found += [entry for entry in entries if entry["request"] == request]
        return sorted(found, key=lambda entry: float(entry["at"]))[-FOUND:]

    def _begun(self) -> IO[bytes]:
        """A new file, unbuffered; the oldest ones make room for it."""
        files = sorted(self._folder.glob("*.jsonl"))
        sizes = {path: _size(path) for path in files}
        for path in files:
            if sum(sizes.values()) + self._file_bytes <= self._total:
                break
            path.unlink(missing_ok=True)
            del sizes[path]
        if self._file is not None:
            self._file.close()
        path = self._folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(handle, "ab", buffering=0)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            try:
                self.flush()
            except OSError:  # a full disk stops no answer
                time.sleep(5)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
