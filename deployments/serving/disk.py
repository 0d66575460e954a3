"""Files on a disk that may be full: room is taken before it is needed, a refusal names the file."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.serving.protocol import ProtocolError

ROOM = 1_000_000
"""Bytes that a worker may write until it has started."""
WAIT_SECONDS = 1.0
_log = logging.getLogger("modelmint.serving")


def allocate(handle: int, size: int) -> None:
    """Give an open file at least `size` bytes, all of them on disk, its own holes included.

    Who writes into a hole of a mapped file is killed by SIGBUS when the disk is full. Raises
    OSError, and leaves the file as long as it was.
    """
    before = os.fstat(handle).st_size
    try:
        os.posix_fallocate(handle, 0, max(size, before))
    except OSError:
        os.ftruncate(handle, before)
        raise


def full(*folders: Path) -> list[Path]:
    """Those of the folders on whose disk no worker can start."""
    free = {folder: os.statvfs(folder) for folder in folders}
    return [folder for folder, one in free.items() if one.f_bavail * one.f_frsize < ROOM]


def wait_for_room(*folders: Path) -> None:
    """Wait until a worker can start: without room it would end, to be started again, and again."""
    told = False
    while found := full(*folders):
        if not told:
            _log.error("the disk of %s is full: this worker starts once there is room", found[0])
            told = True
        time.sleep(WAIT_SECONDS)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Answers an OSError inside, such as of a full disk, with ProtocolError 503."""
    try:
        yield
    except OSError as error:
        _log.error("%s cannot be written: %s", path, error)
        message = f"the server cannot write {path.name}: {error.strerror}"
        raise ProtocolError(503, message, "disk") from None
