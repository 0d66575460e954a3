"""What every key used, exact across the workers of a server, also after one was killed.

One file a day (UTC) of counters, and one of the tokens that keys have left, which no midnight fills
again; both mapped into every worker and changed under one kernel lock. The kernel keeps the pages
and frees the lock when a worker dies, so nothing is lost but by a power cut, and the files are the
record that `usage` reads. Room for a day is taken the day before. Rates follow the token bucket
(RFC 3290).
"""

import fcntl
import logging
import operator
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deployments.serving.keys import ApiKey, Limits
from deployments.serving.protocol import ProtocolError
from deployments.serving.slots import NAME_BYTES, Slots

SLOT = struct.Struct(f"<{NAME_BYTES}s5q16x")
"""Name; requests, refused, rows, bytes in, bytes out. Tokens were behind them in files written
before they had a file of their own: such a day goes on, and every bucket begins full once."""
COUNTERS = struct.Struct("<5q")
TOKENS = struct.Struct("<2d")
"""Tokens left and when they were counted, behind the id of a key."""
RATES = "rates"
DAY = 86_400
TOTAL = ""
"""The line under which all lines of a key are counted together."""
EVERY = "*"
"""The line of requests that were refused before any line was looked at."""
_log = logging.getLogger("modelmint.serving")


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
        self._lock = (folder / ".lock").open("w")
        weakref.finalize(self, self._lock.close)
        self._day = -1
        self._today: Any = None
        self._rates: Any = None
        self._pairs: dict[tuple[str, str], tuple[int, int]] = {}
        """The slots of a key's total and of its line."""
        # While there is room; without it, which is logged, whoever is to be counted is told.
        with suppress(ProtocolError), self._open():
            pass

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
                self._add(self._pair(key.id, EVERY), Counts(refused=1))
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
            used = self._counts(self._today.at(_name(key.id, TOTAL)))
            return self._allows(key, used, 1, 1, now)

    def take(self, charges: Sequence[Charge]) -> list[bool]:
        """Admit, charge and count requests that are answered, all at once.

        Nothing happens to those, told by False, that `admit` or `charge` would refuse.
        """
        try:
            with self._open() as now:
                for key, line, _ in charges:  # before anything is counted: there may be no room
                    if (key.id, line) not in self._pairs:
                        self._pair(key.id, line)
                return self._taken(charges, now)
        except ProtocolError:
            return [False] * len(charges)

    def charge(self, key: ApiKey, line: str, rows: int, size: int) -> int:
        """Count a request of so many rows and bytes before it is computed; on which day, for `add`.

        Raises ProtocolError 429 when that would go over the key's day, and counts the refusal.
        """
        with self._open() as now:
            pair = self._pair(key.id, line)
            over = _over(key.limits, self._counts(pair[0]), rows, size)
            self._add(pair, Counts(refused=1) if over else Counts(1, 0, rows, size))
            day = self._day
        if over:
            raise _exceeded(key, over, now)
        return day

    def check(self, key: ApiKey, line: str, size: int, rows: int = 1) -> None:
        """Refuse, as `charge` does, a request of so many bytes and at least so many rows."""
        if not key.limits.any:
            return
        with self._open() as now:
            pair = self._pair(key.id, line)
            over = _over(key.limits, self._counts(pair[0]), rows, size)
            if over:
                self._add(pair, Counts(refused=1))
        if over:
            raise _exceeded(key, over, now)

    def add(self, key: ApiKey, line: str, change: Counts, day: int | None = None) -> None:
        """Count what became of a request that was charged: today, or on the day of its charge.

        What is given back belongs to that day: another one would begin with more than its quota.
        """
        # That day's counters are there: without room for today's they can still be changed.
        with self._open(turn=day is None):
            if day is None or day == self._day:
                self._add(self._pair(key.id, line), change)
            elif self._path(day).exists():
                earlier = Slots(self._path(day), SLOT.size)
                for name in (TOTAL, line):
                    _count(earlier, earlier.at(_name(key.id, name)), change)
                earlier.close()

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
                name, *counts = SLOT.unpack_from(content, offset)
                key, _, line = name.rstrip(b"\0").decode().partition("/")
                if line and any(counts):
                    date = _date(day)
                    found.append(
                        {"day": date, "key": key, "line": line, **Counts(*counts)._asdict()}
                    )
        return found

    def _taken(self, charges: Sequence[Charge], now: float) -> list[bool]:
        allowed = []
        sums: dict[tuple[int, int], Counts] = {}
        for key, line, counts in charges:
            pair = self._pairs[key.id, line]
            if not key.limits.any:
                allowed.append(True)
                before = sums.get(pair)
                sums[pair] = counts if before is None else before.plus(counts)
                continue
            used = self._counts(pair[0])
            may = self._allows(key, used, counts.rows, counts.bytes_in, now)
            allowed.append(may)
            if may:
                if key.limits.rate is not None:
                    self._leave(key, self._left(key, key.limits.rate, now) - 1, now)
                self._add(pair, counts)
        for pair, counts in sums.items():
            self._add(pair, counts)
        return allowed

    def _allows(self, key: ApiKey, used: Counts, rows: int, size: int, now: float) -> bool:
        limits = key.limits
        if limits.rate is not None and self._left(key, limits.rate, now) < 1:
            return False
        return not _over(limits, used, rows, size)

    def _left(self, key: ApiKey, rate: float, now: float) -> float:
        """Tokens in the key's bucket."""
        burst = key.limits.burst or max(1, int(rate))
        place = self._rates.at(key.id.encode()) + NAME_BYTES
        tokens, at = TOKENS.unpack_from(self._rates.map, place)
        return burst if at == 0 else min(burst, tokens + max(0.0, now - at) * rate)

    def _leave(self, key: ApiKey, tokens: float, now: float) -> None:
        place = self._rates.at(key.id.encode()) + NAME_BYTES
        TOKENS.pack_into(self._rates.map, place, tokens, now)

    def _pair(self, key: str, line: str) -> tuple[int, int]:
        pair = self._pairs.get((key, line))
        if pair is None:
            pair = self._today.at(_name(key, TOTAL)), self._today.at(_name(key, line))
            self._pairs[key, line] = pair
        return pair

    def _add(self, pair: tuple[int, int], change: Counts) -> None:
        for place in pair:
            _count(self._today, place, change)

    def _counts(self, place: int) -> Counts:
        return Counts(*COUNTERS.unpack_from(self._today.map, place + NAME_BYTES))

    @contextmanager
    def _open(self, *, turn: bool = True) -> Iterator[float]:
        """Today's counters, to this process and thread alone; yields the time in seconds.

        Or, unless they are to `turn`, those of the day that was open last.
        """
        with self._threads:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                now = self._now()
                if turn and now // DAY != self._day:
                    self._turn(int(now // DAY))
                yield now
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _turn(self, day: int) -> None:
        if self._rates is None:
            self._rates = Slots(self._folder / RATES, NAME_BYTES + TOKENS.size)
        self._today = Slots(self._path(day), SLOT.size)
        self._pairs, self._day = {}, day
        try:
            Slots(self._path(day + 1), SLOT.size).close()
        except ProtocolError:
            _log.error(
                "unless there is room by then, nothing is answered from %s on", _date(day + 1)
            )

    def _path(self, day: int) -> Path:
        return self._folder / f"{_date(day)}.ledger"


def _name(key: str, line: str) -> bytes:
    return f"{key}/{line}".encode()


def _count(slots: Slots, place: int, change: Counts) -> None:
    offset = place + NAME_BYTES
    counts = COUNTERS.unpack_from(slots.map, offset)
    COUNTERS.pack_into(slots.map, offset, *map(operator.add, counts, change))


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
