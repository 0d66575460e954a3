"""The operating system's processes that belong to one service: finding and ending them."""

import sys
import time
from collections.abc import Iterable

import psutil

from tasks.process import identity

# Every process of a service inherits this variable, naming the service's state folder. It finds
# what a record cannot: a child that outlived its killed parent, a start nobody could write down.
MARK = "MODELMINT_SERVICE"
POLL = 0.05
# After SIGKILL only a process inside the kernel (a hung disk) is left.
KILL_WAIT = 10.0


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not, though its pid is not free yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find(pid: int, known: str) -> psutil.Process | None:
    """The living process with this pid and identity; None when the pid is a stranger's."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if known and identity_of(pid) == known and alive(process) else None


def identity_of(pid: int) -> str:
    """What tells the process from a later one with its pid; empty when there is none.

    Its identity (tasks.process), or without Linux its create time, which follows no clock there.
    """
    if sys.platform == "linux":
        return identity(pid)
    try:
        return f"{pid}/{psutil.Process(pid).create_time()}"
    except psutil.NoSuchProcess:
        return ""


def age(process: psutil.Process) -> float:
    """Seconds since it started; 0 when it is gone."""
    try:
        # Both by the clock as it is now: whatever it was set to meanwhile does not count.
        return time.time() - process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def family(mark: str, root: psutil.Process | None = None) -> list[psutil.Process]:
    """`root`, its descendants, and every process that carries the service's mark."""
    members: dict[int, psutil.Process] = {}
    if root is not None:
        try:
            members = {each.pid: each for each in (root, *root.children(recursive=True))}
        except psutil.NoSuchProcess:
            members = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                members[process.pid] = process
        except (psutil.Error, OSError):
            # Another user's process, or one that is just exiting: neither is ours.
            continue
    return [process for process in members.values() if alive(process)]


def listens(processes: Iterable[psutil.Process], port: int) -> bool:
    """Whether one of these processes, and not a stranger, accepts connections on `port`."""
    for process in processes:
        try:
            sockets = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets):
            return True
    return False


def end(processes: Iterable[psutil.Process], grace: float) -> list[psutil.Process]:
    """Send SIGTERM, wait `grace` seconds, send SIGKILL; returns those that are still there."""
    remaining = list(processes)
    for process in remaining:
        _signal(process, kill=False)
    remaining = _wait(remaining, grace)
    for process in remaining:
        _signal(process, kill=True)
    return _wait(remaining, KILL_WAIT)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        # psutil compares create times first: a recycled pid raises instead of hitting a stranger.
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    # psutil.wait_procs would wait for zombies, which only their own parent can clear away.
    deadline = time.monotonic() + seconds
    while remaining := [process for process in processes if alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL)
    return remaining
