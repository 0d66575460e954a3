"""Files on a disk that may be full, or damaged: room is taken before it is needed, and a refusal
names the file."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from deployments.serving.protocol import ProtocolError

ROOM = 1_000_000
"""Bytes that a worker may write until it has started."""
M = TypeVar("M", bound=BaseModel)
_unwritten: set[Path] = set()
"""Files that could not be written the last time: callers may try while a disk is full."""
_log = logging.getLogger("modelmint.serving")


class Damaged(ProtocolError, ValueError):
    """A file of the server itself cannot be read: 503 for who would change it, naming it."""


def parsed(path: Path, model: type[M]) -> M:
    """What is in a file; raises Damaged, which tells no value of it."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Damaged(503, f"{path.name} cannot be read: {error.strerror}", "damaged") from None
    except ValidationError as error:
        one = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, one["loc"])) or "its beginning"
        message = f"{path.name} is damaged at {where} ({one['msg']}): restore it"
        raise Damaged(503, message, "damaged") from None


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


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Answers an OSError inside, such as of a full disk, with ProtocolError 503.

    It is logged once, until the file is written again.
    """
    try:
        yield
    except OSError as error:
        if path not in _unwritten:
            _unwritten.add(path)
            _log.error("%s cannot be written: %s", path, error)
        message = f"the server cannot write {path.name}: {error.strerror}"
        raise ProtocolError(503, message, "disk") from None
    if path in _unwritten:
        _unwritten.discard(path)
        _log.info("%s is written again", path)
