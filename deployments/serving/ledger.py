"""What every key used, exact across the workers of a server, also after one was killed.

One file a day (UTC) of fixed slots, mapped into every worker and changed under a kernel lock. The
kernel keeps the pages and frees the lock when a worker dies, so nothing is lost but by a power cut,
and the files are the record that `usage` reads. Rates follow the token bucket (RFC 3290).
"""

import fcntl
import mmap
import operator
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deployments.serving.keys import ApiKey, Limits
from deployments.serving.protocol import ProtocolError

SLOT = struct.Struct("<64s5q2d")
"""Name; requests, refused, rows, bytes in, bytes out; tokens left and when they were counted."""
COUNTERS = struct.Struct("<5q")
COUNTERS_AT = 64
"""Where in a slot the counters are."""
SLOTS = 1024
DAY = 86_400
TOTAL = ""
"""The line under which all lines of a key are counted together."""


class Counts(NamedTuple):
    """Requests answered or refused for a limit, rows computed, and bytes of both directions."""

    requests: int = 0
    refused: int = 0
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Ledger:
    """The counters below `folder`; thread-safe, and shared by all processes that open it."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._now = folder, now
        self._threads = threading.Lock()
        self._day = -1
        self._file: Any = None
        self._map: Any = None
        self._close: Callable[[], object] = lambda: None
        self._slots: dict[bytes, int] = {}

    def admit(self, key: ApiKey) -> None:
        """Take one request from the key's rate; raises ProtocolError 429 when none is left."""
        limits = key.limits
        if limits.rate is None:
            return
        burst = limits.burst or max(1, int(limits.rate))
        with self._open() as now:
            offset = self._slot(key.id, TOTAL)
            name, *counts, tokens, at = SLOT.unpack_from(self._map, offset)
            left = burst if at == 0 else min(burst, tokens + max(0.0, now - at) * limits.rate)
            allowed = left >= 1
            counts[1] += not allowed
            SLOT.pack_into(self._map, offset, name, *counts, left - allowed, now)
        if not allowed:
            raise ProtocolError(
                429,
                f"key {key.id} may ask {limits.rate:g} times a second",
                "rate_limited",
                retry_after=(1 - left) / limits.rate,
            )

    def charge(self, key: ApiKey, line: str, rows: int, size: int) -> None:
        """Count a request of so many rows and bytes before it is computed.

        Raises ProtocolError 429 when that would go over the key's day, and counts the refusal.
        """
        with self._open() as now:
            total = self._read(self._slot(key.id, TOTAL))
            over = _over(key.limits, total, rows, size)
            change = Counts(refused=1) if over else Counts(1, 0, rows, size)
            self._add(key.id, line, change)
        if over:
            raise ProtocolError(
                429,
                f"key {key.id} has used up its {over} of today (UTC)",
                "quota_exceeded",
                retry_after=DAY - now % DAY,
            )

    def add(self, key: ApiKey, line: str, change: Counts) -> None:
        """Count what became of a request that was charged."""
        with self._open():
            self._add(key.id, line, change)

    def usage(self, days: int) -> list[dict[str, Any]]:
        """One record for every day, key and line with requests, the newest day first."""
        found = []
        today = int(self._now() // DAY)
        for day in range(today, today - days, -1):
            path = self._path(day)
            if not path.exists():
                continue
            content = path.read_bytes()
            for offset in range(0, len(content) - SLOT.size + 1, SLOT.size):
                name, *counts = SLOT.unpack_from(content, offset)[:6]
                key, _, line = name.rstrip(b"\0").decode().partition("/")
                if line and any(counts):
                    date = _date(day)
                    found.append(
                        {"day": date, "key": key, "line": line, **Counts(*counts)._asdict()}
                    )
        return found

    def _add(self, key: str, line: str, change: Counts) -> None:
        for name in (TOTAL, line):
            offset = self._slot(key, name) + COUNTERS_AT
            counts = COUNTERS.unpack_from(self._map, offset)
            COUNTERS.pack_into(self._map, offset, *map(operator.add, counts, change))

    def _read(self, offset: int) -> Counts:
        return Counts(*COUNTERS.unpack_from(self._map, offset + COUNTERS_AT))

    @contextmanager
    def _open(self) -> Iterator[float]:
        """Today's file, to this process and thread alone; yields the time in seconds."""
        with self._threads:
            now = self._now()
            if now // DAY != self._day:
                self._turn(int(now // DAY))
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield now
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _turn(self, day: int) -> None:
        self._close()
        handle = os.open(self._path(day), os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._close = weakref.finalize(self, self._file.close)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.fstat(handle).st_size == 0:
            os.ftruncate(handle, SLOTS * SLOT.size)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._map = mmap.mmap(handle, 0)
        self._slots, self._day = {}, day

    def _slot(self, key: str, line: str) -> int:
        name = f"{key}/{line}".encode()
        found = self._slots.get(name)
        return self._find(name) if found is None else found

    def _find(self, name: bytes) -> int:
        """The slot of that name, taken if there is none yet; another process may have taken it."""
        size = os.fstat(self._file.fileno()).st_size
        if size > len(self._map):
            self._map.resize(size)
        for offset in range(0, size, SLOT.size):
            taken = SLOT.unpack_from(self._map, offset)[0].rstrip(b"\0")
            if taken and taken != name:
                self._slots[taken] = offset
                continue
            if not taken:
                SLOT.pack_into(self._map, offset, name, *(0,) * 5, 0.0, 0.0)
            self._slots[name] = offset
            return offset
        os.ftruncate(self._file.fileno(), size * 2)
        return self._find(name)

    def _path(self, day: int) -> Path:
        return self._folder / f"{_date(day)}.ledger"


def _over(limits: Limits, used: Counts, rows: int, size: int) -> str:
    """Which limit of the day would be passed; empty for none."""
    if limits.daily_rows is not None and used.rows + rows > limits.daily_rows:
        return f"{limits.daily_rows:,} rows"
    spent = used.bytes_in + used.bytes_out + size
    if limits.daily_bytes is not None and spent > limits.daily_bytes:
        return f"{limits.daily_bytes:,} bytes"
    return ""


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).strftime("%Y-%m-%d")
