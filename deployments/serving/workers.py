"""The worker processes of one server: who there is, and how far each has followed the state.

A worker holds a lock on a file of its own for as long as it lives, which the kernel frees when it
is killed, and writes beside it the generation it serves. So who makes a change can wait until
every living worker has it.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

POLL_SECONDS = 0.005


class Behind(NamedTuple):
    """A worker that does not serve what it is to serve."""

    pid: int
    reason: str


class Workers:
    """The workers that share `folder`, of which this process may be one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for lock in folder.glob("*.lock"):
            self._forget(lock)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        lock = folder / f"{self._name}.lock"
        while True:
            self._lock = lock.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Another one that looked around between these two may have taken it for a dead one's.
            if lock.exists() and lock.stat().st_ino == os.fstat(self._lock.fileno()).st_ino:
                break
            self._lock.close()

    def leave(self) -> None:
        """No longer be waited for."""
        for ending in ("json", "lock"):
            (self._folder / f"{self._name}.{ending}").unlink(missing_ok=True)
        self._lock.close()

    def acknowledge(
        self, generation: int, failed: dict[str, str], opening: Sequence[str] = ()
    ) -> None:
        """Tell that this worker serves a generation, but for what failed here, by version, and for
        the versions that it is still opening."""
        incoming = self._folder / f".{self._name}"
        told = {"generation": generation, "failed": failed, "opening": opening}
        incoming.write_bytes(orjson.dumps(told))
        incoming.replace(self._folder / f"{self._name}.json")

    def behind(self, generation: int, version: str, seconds: float) -> list[Behind]:
        """The living workers that after so long do not serve a generation, or not that version."""
        deadline = time.monotonic() + seconds
        while True:
            late, failed = [], []
            for pid, found in self._living():
                if found["generation"] < generation:
                    late.append(Behind(pid, "does not follow"))
                elif version in found["opening"]:
                    late.append(Behind(pid, "is still opening it"))
                elif version in found["failed"]:
                    failed.append(Behind(pid, found["failed"][version]))
            if not late or time.monotonic() > deadline:
                return late + failed
            time.sleep(POLL_SECONDS)

    def count(self) -> int:
        """How many workers live and serve."""
        return len(self._living())

    def _living(self) -> list[tuple[int, Any]]:
        found = []
        for path in self._folder.glob("*.json"):
            if path.stem != self._name and self._forget(path.with_suffix(".lock")):
                continue
            try:
                told = orjson.loads(path.read_bytes())
            except FileNotFoundError:  # it left just now
                continue
            found.append((int(path.stem.partition("-")[0]), told))
        return found

    def _forget(self, lock: Path) -> bool:
        """Whether nobody holds the lock, so that its worker has ended; then its files go."""
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        lock.with_suffix(".json").unlink(missing_ok=True)
        return True
