"""The audit log: every control action, appended for good, each entry naming the one before.

An entry is one line of JSON with the digest of the entry before it, so altering, dropping or
reordering any breaks the chain from there on. Cutting off the end leaves a valid shorter chain:
keep the last digest elsewhere and give it to `check`.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import JsonValue

from deployments.serving.disk import Damaged, written
from models.digests import Digest, IntegrityError, json_digest
from models.open import Frozen

AUDIT_FILE = "audit.jsonl"
BLOCK = 65_536
"""Bytes of the end that are looked at first."""
START: Digest = "0" * 64
"""What the first entry names as the one before."""


class Entry(Frozen):
    """One control action, written before it is done."""

    sequence: int
    at: float
    """Seconds since 1970 UTC."""
    actor: str
    """Id of the key that asked."""
    action: str
    target: str
    request: str
    """The request id."""
    detail: dict[str, JsonValue] = {}
    previous: Digest

    @property
    def digest(self) -> Digest:
        """What the next entry names."""
        return json_digest(self.model_dump(mode="json"))


class Audit:
    """The log below `folder`; the workers of a server append in turns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / AUDIT_FILE
        self._threads = threading.Lock()

    def append(
        self, actor: str, action: str, target: str, request: str, **detail: JsonValue
    ) -> Entry:
        """Put an action on disk.

        Raises ProtocolError 503 when that cannot be written, Damaged when the end cannot be read.
        """
        with written(self._path), self._locked() as stream:
            last = _last(stream)
            entry = Entry(
                sequence=last.sequence + 1 if last else 1,
                at=time.time(),
                actor=actor,
                action=action,
                target=target,
                request=request,
                detail=detail,
                previous=last.digest if last else START,
            )
            stream.seek(0, os.SEEK_END)
            stream.write(orjson.dumps(entry.model_dump(mode="json")) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            return entry

    def read(self, after: int, count: int) -> list[dict[str, Any]]:
        """Up to `count` entries behind the one with sequence `after`, as they were written.

        Raises Damaged for one that cannot be read; whether they were altered is for `check`.
        """
        found: list[dict[str, Any]] = []
        if not self._path.exists():
            return found
        with self._path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if number > after and line.endswith(b"\n"):
                    try:
                        found.append(orjson.loads(line))
                    except orjson.JSONDecodeError:
                        raise _damaged(f"entry {number}") from None
                    if len(found) == count:
                        break
        return found

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with self._threads, self._path.open("a+b") as stream:
            self._path.chmod(0o600)
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream


def check(entries: Iterable[Any], head: Digest | None = None) -> tuple[int, Digest]:
    """How many entries the chain has and its last digest.

    Raises IntegrityError for the first entry that does not follow from the one before, and when
    `head`, the last digest at an earlier time, is not among them.
    """
    count, last, seen = 0, START, head in (None, START)
    for count, found in enumerate(entries, 1):
        try:
            entry = Entry.model_validate(found)
        except ValueError as error:
            raise IntegrityError(f"audit entry {count} is none: it was altered ({error})") from None
        if entry.previous != last or entry.sequence != count:
            raise IntegrityError(
                f"audit entry {count} does not follow from the one before: one of the two was"
                " altered, or entries between them were removed"
            )
        last = entry.digest
        seen = seen or last == head
    if not seen:
        raise IntegrityError(f"no audit entry has digest {str(head)[:12]}: the end was cut off")
    return count, last


def _last(stream: IO[bytes]) -> Entry | None:
    """The last whole entry; a torn one, that a power cut left and nobody was told of, goes."""
    start, tail = stream.seek(0, os.SEEK_END), b""
    # The last break ends the entry, the one before begins it, however long it is.
    while start > 0 and tail.count(b"\n") < 2:
        step = min(start, max(BLOCK, len(tail)))
        start -= step
        stream.seek(start)
        tail = stream.read(step) + tail
    whole = tail.rfind(b"\n") + 1
    if whole < len(tail):
        stream.truncate(start + whole)
    lines = tail[:whole].splitlines()
    if not lines:
        return None
    try:
        return Entry.model_validate_json(lines[-1])
    except ValueError:
        raise _damaged("its last entry") from None


def _damaged(where: str) -> Damaged:
    return Damaged(503, f"{AUDIT_FILE} is damaged at {where}: restore it", "damaged")
