"""Which version answered which request: one line of JSON each, without what was asked or answered.

Every worker appends to a file of its own and begins another when that is large; the oldest go when
all together are. What was written in the last quarter of a second is lost when a worker is killed.
What a full disk does not take waits until it does; of too much the oldest is lost, and counted.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import orjson

from deployments.serving import metrics
from deployments.serving.protocol import ProtocolError
from deployments.serving.turns import Who

FLUSH_SECONDS = 0.25
AGAIN_SECONDS = 5.0
"""Until a disk that took nothing is tried again."""
KEPT = 100_000
"""Entries that wait for it; about 30 MB."""
FILE_BYTES = 16_000_000
TOTAL_BYTES = 256_000_000
"""About a million requests."""
FOUND = 20
"""Largest number of entries that one request id is answered with, the newest."""
TOGETHER_NANOSECONDS = 60 * 10**9
"""From the end of one worker's file to the beginning of another's that may hold the same id."""
LOOKUPS = 2
"""Lookups of a worker at once: each may read all files."""
WAITING = 8
"""Lookups of a key that may be under way in a worker."""
_log = logging.getLogger("modelmint.serving")


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
        self._lookups = anyio.CapacityLimiter(LOOKUPS)
        self._asked: Counter[str] = Counter()
        threading.Thread(target=self._keep_writing, name="journal", daemon=True).start()

    def add(self, **entry: Any) -> None:
        """Note one request; costs no system call."""
        self._lines.append(orjson.dumps(entry))

    def flush(self) -> None:
        """Write what was noted; raises OSError, and then what is not written waits on."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if not lines:
            return
        content, written = b"".join(line + b"\n" for line in lines), 0
        try:
            if self._file is None or self._file.tell() > self._file_bytes:
                self._file = self._begun()
            while written < len(content):  # a disk that is nearly full takes a part
                written += self._file.write(content[written:])
        except OSError:
            whole = content.rfind(b"\n", 0, written) + 1
            self._lines.extendleft(content[whole:].splitlines()[::-1])
            self._drop()
            if self._file is not None and written > whole:
                self._file.seek(whole - written, os.SEEK_CUR)
                self._file.truncate()
            raise

    def _drop(self) -> None:
        lost = len(self._lines) - KEPT
        for _ in range(lost):
            self._lines.popleft()
        if lost > 0:
            metrics.not_journaled(lost)

    async def look_up(self, request: str, who: Who, every: bool) -> list[dict[str, Any]]:
        """What `find` finds of the caller's key, or of every key, beside the event loop.

        Few are looked up at once, for it reads much. Raises ProtocolError 429 for a tenant that has
        `WAITING` lookups under way.
        """
        tenant, key = who
        if self._asked[tenant] >= WAITING:
            raise ProtocolError(
                429, f"a tenant may have {WAITING} lookups under way", "overloaded", retry_after=1
            )
        self._asked[tenant] += 1
        try:
            find = partial(self.find, request, None if every else key)
            return await anyio.to_thread.run_sync(find, limiter=self._lookups)
        finally:
            self._asked[tenant] -= 1
            if not self._asked[key]:
                del self._asked[key]

    def find(self, request: str, key: str | None = None) -> list[dict[str, Any]]:
        """The newest entries of a request id, oldest first; a client may use one id again.

        With a key's id only those of that key: others may use the same ids.

        Once a file has any, older ones are read only where they were written to after that was
        begun, by other workers, or up to a minute before, as by one that was killed.
        """
        with self._writing:
            with suppress(OSError):  # it is there to be read all the same
                self._flush()
            waiting = b"\n".join(self._lines.copy())
        needle = b'"request":' + orjson.dumps(request)

        def matching(content: bytes) -> list[dict[str, Any]]:
            return [
                one
                for one in _entries(content, needle)
                if one["request"] == request and key in (None, one.get("key"))
            ]

        found: list[dict[str, Any]] = []
        since = 0
        for path in sorted(self._folder.glob("*.jsonl"), reverse=True):
            try:
                if path.stat().st_mtime_ns < since:
                    continue
                content = path.read_bytes()
            except FileNotFoundError:  # it was the oldest
                continue
            entries = matching(content)
            if entries and not found:
                since = int(path.stem.partition("-")[0]) - TOGETHER_NANOSECONDS
            found += entries
        found += [one for one in matching(waiting) if one not in found]
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
        path = self._folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self._file is not None:
            self._file.close()
        return os.fdopen(handle, "ab", buffering=0)

    def _keep_writing(self) -> None:
        failing = False
        while True:
            time.sleep(AGAIN_SECONDS if failing else FLUSH_SECONDS)
            try:
                self.flush()
            except OSError as error:  # a full disk stops no answer
                if not failing:
                    _log.error("the journal waits, beyond %d entries it loses: %s", KEPT, error)
                failing = True
            else:
                failing = False


def _entries(content: bytes, needle: bytes) -> Iterator[dict[str, Any]]:
    """Those of the lines that hold the needle and are whole."""
    at = content.find(needle)
    while at >= 0:
        end = content.find(b"\n", at)
        line = content[content.rfind(b"\n", 0, at) + 1 : end if end >= 0 else None]
        with suppress(orjson.JSONDecodeError):  # a part, alone or before another line
            yield orjson.loads(line)
        at = content.find(needle, end) if end >= 0 else -1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
