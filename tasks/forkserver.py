"""Children forked from a process that has imported the libraries: torch and its exporter take long.

A server is started for each set of variables that count when a library is loaded. It imports
libraries and computes nothing: it has no threads but those of OpenBLAS, which ends and begins them
itself around a fork, so that one is safe. And it has none of this project's modules, so that a
child runs the code that is on the disk when it starts. It ends with the process that started it, or
when it has had nothing to do for `IDLE_SECONDS`, so that a stack at rest has its memory back. On
Linux its children end with it. Their umask, limits and cores are those of when it started.
`tasks/forked.py` is what the server runs.

Source of the design: Python's `multiprocessing.forkserver`, which has one environment for all.
"""

import atexit
import contextlib
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

IDLE_SECONDS = 60.0
# One that left, or was killed, while nobody looked is found out when it is asked.
ATTEMPTS = 3
# Beside what the caller says: read before any of our code runs.
LOADED = ("CUDA_", "LANG", "LC_", "LD_", "PYTHON")
# What a request meets whose server has ended; with any other error it was never asked.
GONE = (errno.EBADF, errno.EPIPE, errno.ECONNRESET)


class ServerError(RuntimeError):
    """No server could be had; the message is how the last one ended and what it said."""

    def __init__(self, code: int, said: str) -> None:
        self.killed = -code in (signal.SIGKILL, signal.SIGTERM)
        super().__init__(f"the fork server ended ({ending(code)}); it last said: {said}")


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    control: socket.socket
    errors: IO[bytes]
    numbers: Iterator[int]


class Child:
    """A process that a server forked, as far as whoever asked for it needs it."""

    def __init__(
        self, server: _Server, number: int, pid: int, answers: IO[str], status: IO[str]
    ) -> None:
        self.pid = pid
        self.code = -signal.SIGKILL
        """Its exit code once it has ended, negative for a signal; SIGKILL if its server died."""
        self._server, self._number = server, number
        self._answers, self._status = answers, status

    def lines(self) -> Iterator[str]:
        """What it writes to its standard output, line by line, until it has ended."""
        try:
            yield from self._answers
            if said := self._status.readline():
                self.code = int(said)
        finally:
            # Nobody is left to hear it.
            self.kill()
            self._answers.close()
            self._status.close()

    def kill(self) -> None:
        """End it; nothing happens if it has ended."""
        # The server knows whether the number of the process is still its own.
        with contextlib.suppress(OSError):
            self._server.control.sendall(b"k" + self._number.to_bytes(8, "big"))


_servers: dict[tuple[object, ...], _Server] = {}
_lock = threading.Lock()


def start(
    module: str, arguments: list[str], given: str, environment: dict[str, str],
    numeric: tuple[str, ...], errors: IO[bytes],
) -> Child:  # fmt: skip
    """A child that runs `main(*arguments)` of the module, with `given` as its standard input.

    `errors` is its error stream. Variables that begin with one of `numeric` are set before any
    library is loaded, all others before the module is. Raises ServerError, and OSError where this
    machine has no room, process or descriptor left.
    """
    key = _key(environment, numeric)
    with tempfile.TemporaryFile() as request:
        request.write((json.dumps([module, arguments, environment]) + "\n" + given).encode())
        for _ in range(ATTEMPTS):
            # One offset is shared by all who have the file.
            request.seek(0)
            server = _running(key, environment)
            child = _forked(server, request, errors)
            if child is not None:
                return child
            failed = _ended(key, server)
    raise failed


def ending(code: int) -> str:
    """How a process ended, in words: `SIGKILL`, `exit code 3`."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _key(environment: dict[str, str], numeric: tuple[str, ...]) -> tuple[object, ...]:
    counting = sorted(i for i in environment.items() if i[0].startswith((*numeric, *LOADED)))
    # What has been installed since must be read anew.
    installed = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns
    return sys.executable, str(Path.cwd()), installed, *counting


def _running(key: tuple[object, ...], environment: dict[str, str]) -> _Server:
    with _lock:
        for other, server in list(_servers.items()):
            if other != key and server.process.poll() is not None:
                _close(_servers.pop(other))
        if key not in _servers:
            control, theirs = socket.socketpair()
            with theirs, ExitStack() as kept:
                errors = kept.enter_context(tempfile.TemporaryFile())
                process = subprocess.Popen(
                    [sys.executable, "-m", "tasks.forked", str(IDLE_SECONDS)],
                    env=environment, stdin=theirs.fileno(), stdout=errors, stderr=errors,
                )  # fmt: skip
                kept.pop_all()
            _servers[key] = _Server(process, control, errors, itertools.count(1))
        return _servers[key]


def _forked(server: _Server, request: IO[bytes], errors: IO[bytes]) -> Child | None:
    """The server's next child; None if the server is not there any more."""
    number = next(server.numbers)
    with ExitStack() as kept:
        answers, its_answers = os.pipe()
        heard = kept.enter_context(os.fdopen(answers, encoding="utf-8", errors="replace"))
        theirs = kept.enter_context(os.fdopen(its_answers, "wb"))
        status, its_status = os.pipe()
        told = kept.enter_context(os.fdopen(status, encoding="ascii"))
        telling = kept.enter_context(os.fdopen(its_status, "wb"))
        descriptors = [each.fileno() for each in (request, theirs, errors, telling)]
        try:
            with _lock:
                socket.send_fds(server.control, [b"f" + number.to_bytes(8, "big")], descriptors)
        except OSError as error:
            if error.errno not in GONE:
                raise
        theirs.close()
        telling.close()
        pid = int(told.readline() or 0)
        if pid < 0:
            raise OSError(-pid, f"no process could be forked: {os.strerror(-pid)}")
        if not pid:
            return None
        kept.pop_all()
        return Child(server, number, pid, heard, told)


def _ended(key: tuple[object, ...], server: _Server) -> ServerError:
    """What became of a server that did not answer."""
    code = server.process.wait()
    with _lock:
        if _servers.get(key) is server:
            del _servers[key]
        _close(server)
    descriptor = server.errors.fileno()
    begin = max(0, os.fstat(descriptor).st_size - 800)
    return ServerError(code, os.pread(descriptor, 800, begin).decode(errors="replace"))


def _close(server: _Server) -> None:
    # What it said remains for all who ask, until the last of them has forgotten it.
    server.control.close()
    server.process.wait()


def _end() -> None:
    with _lock:
        for server in _servers.values():
            server.process.kill()
            _close(server)
        _servers.clear()


def _after_fork() -> None:
    """In a copy of this process: the servers are the original's."""
    for server in _servers.values():
        server.control.close()
    _servers.clear()
    _lock.release()


atexit.register(_end)
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
