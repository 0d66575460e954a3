"""A disk that is full: a small file system of a test's own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size, in memory, on the folder."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "modelmint-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that leaves so many bytes of the disk."""
    usage = os.statvfs(folder)
    path = folder / "filler"
    with path.open("wb") as file:
        size = usage.f_bavail * usage.f_frsize - leave
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    return path


def ends(act: Callable[[], object]) -> int:
    """How a process of its own that does this ends: its exit code, a signal's number below zero.

    What writes into a hole of a mapped file would end the test's own.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
