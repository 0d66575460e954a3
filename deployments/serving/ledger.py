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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deployments.serving.keys import ApiKey, Limits
from deployments.serving.protocol import ProtocolError

SLOT = struct.Struct("<64s5q2d")
"""Name; requests, refused, rows, bytes in, bytes out; tokens left and when they were counted."""
COUNTERS = struct.Struct("<5q")
TOKENS = struct.Struct("<2d")
COUNTERS_AT, TOKENS_AT = 64, 104
"""Where in a slot they are."""
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

    def plus(self, other: "Counts") -> "Counts":
        """Both together."""
        return Counts(*map(operator.add, self, other))


class Charge(NamedTuple):
    """What a key used of a line."""

    key: ApiKey
    line: str
    counts: Counts


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
        self._pairs: dict[tuple[str, str], tuple[int, int]] = {}
        """The slots of a key's total and of its line."""

    def admit(self, key: ApiKey) -> None:
        """Take one request from the key's rate; raises ProtocolError 429 when none is left."""
        rate = key.limits.rate
        if rate is None:
            return
        with self._open() as now:
            left = self._left(key, rate, now)
            allowed = left >= 1
            self._leave(key, left - allowed, now)
            if not allowed:
                self._count(self._slot(key.id, TOTAL), Counts(refused=1))
        if not allowed:
            raise ProtocolError(
                429,
                f"key {key.id} may ask {rate:g} times a second",
                "rate_limited",
                retry_after=(1 - left) / rate,
            )

    def allows(self, key: ApiKey) -> bool:
        """Whether the key has something left of its rate and its day; changes nothing."""
        if not key.limits.any:
            return True
        with self._open() as now:
            return self._allows(key, 1, 1, now)

    def take(self, charges: Sequence[Charge]) -> list[bool]:
        """Admit, charge and count requests that are answered, all at once.

        Nothing happens to those, told by False, that `admit` or `charge` would refuse.
        """
        allowed = []
        sums: dict[tuple[str, str], Counts] = {}
        with self._open() as now:
            for key, line, counts in charges:
                may = not key.limits.any or self._allows(key, counts.rows, counts.bytes_in, now)
                allowed.append(may)
                if may and key.limits.any:
                    if key.limits.rate is not None:
                        self._leave(key, self._left(key, key.limits.rate, now) - 1, now)
                    self._add(key.id, line, counts)
                elif may:
                    name = key.id, line
                    before = sums.get(name)
                    sums[name] = counts if before is None else before.plus(counts)
            for (identity, line), counts in sums.items():
                self._add(identity, line, counts)
        return allowed

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
            raise _exceeded(key, over, now)

    def check(self, key: ApiKey, line: str, size: int) -> None:
        """Refuse, as `charge` does, a request of so many bytes and any rows at all."""
        if not key.limits.any:
            return
        with self._open() as now:
            over = _over(key.limits, self._read(self._slot(key.id, TOTAL)), 1, size)
            if over:
                self._add(key.id, line, Counts(refused=1))
        if over:
            raise _exceeded(key, over, now)

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

    def _allows(self, key: ApiKey, rows: int, size: int, now: float) -> bool:
        limits = key.limits
        if limits.rate is not None and self._left(key, limits.rate, now) < 1:
            return False
        return not _over(limits, self._read(self._slot(key.id, TOTAL)), rows, size)

    def _left(self, key: ApiKey, rate: float, now: float) -> float:
        """Tokens in the key's bucket."""
        burst = key.limits.burst or max(1, int(rate))
        tokens, at = TOKENS.unpack_from(self._map, self._slot(key.id, TOTAL) + TOKENS_AT)
        return burst if at == 0 else min(burst, tokens + max(0.0, now - at) * rate)

    def _leave(self, key: ApiKey, tokens: float, now: float) -> None:
        TOKENS.pack_into(self._map, self._slot(key.id, TOTAL) + TOKENS_AT, tokens, now)

    def _add(self, key: str, line: str, change: Counts) -> None:
        pair = self._pairs.get((key, line))
        if pair is None:
            pair = self._pairs[key, line] = self._slot(key, TOTAL), self._slot(key, line)
        for slot in pair:
            self._count(slot, change)

    def _count(self, slot: int, change: Counts) -> None:
        offset = slot + COUNTERS_AT
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
        self._slots, self._pairs, self._day = {}, {}, day

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


def _exceeded(key: ApiKey, over: str, now: float) -> ProtocolError:
    return ProtocolError(
        429,
        f"key {key.id} has used up its {over} of today (UTC)",
        "quota_exceeded",
        retry_after=DAY - now % DAY,
    )


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).strftime("%Y-%m-%d")
