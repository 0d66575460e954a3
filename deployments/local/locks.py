"""File locks the kernel counts for us: they vanish with their process, however it ended."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deployments.local.processes import POLL


@contextmanager
def exclusive(path: Path, seconds: float) -> Iterator[None]:
    """Hold `path` alone.

    Raises:
        TimeoutError: another process held it all the time.
    """
    deadline = time.monotonic() + seconds
    with path.open("a") as lock:
        while not _alone(lock):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {path} for {seconds:.0f} s")
            time.sleep(POLL)
        yield


def join(users: IO[str]) -> None:
    """Count the caller as a user for as long as it keeps the file open."""
    fcntl.flock(users, fcntl.LOCK_SH)


def leave(users: IO[str]) -> bool:
    """Stop counting the caller; True, and nobody can join yet, when it was the last user."""
    if _alone(users):
        return True
    # Explicitly, since a forked child may keep the same file open for longer than the caller.
    fcntl.flock(users, fcntl.LOCK_UN)
    return False


def _alone(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
