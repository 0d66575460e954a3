"""Children forked from a process that has imported the libraries: torch and its exporter take long.

A server is started for each set of variables that count when a library is loaded. It imports
libraries and computes nothing: it has no threads but those of OpenBLAS, which ends and begins them
itself around a fork, so that one is safe. And it has none of this project's modules, so that a
child runs the code that is on the disk when it starts. It ends with the process that started it, or
when it has had nothing to do for `IDLE_SECONDS`, so that a stack at rest has its memory back.

Source of the design: Python's `multiprocessing.forkserver`, which has one environment for all.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

IDLE_SECONDS = 60.0
# What training, export and compression import, in the order they need it; not onnxruntime, which
# starts a thread. Elsewhere than on Linux, the system's own libraries may not be forked.
LIBRARIES = (
    ("torch", "torch._dynamo", "onnxscript", "torch.onnx", "boto3")
    if sys.platform == "linux"
    else ()
)
# Beside what the caller says: read before any of our code runs.
LOADED = ("CUDA_", "LANG", "LC_", "LD_", "PYTHON")
ENDED = "!"


class Child:
    """A process that a server forked, as far as whoever asked for it needs it."""

    def __init__(self, pid: int, channel: socket.socket, lines: IO[str]) -> None:
        self.pid = pid
        self._channel = channel
        self._lines = lines
        self._lock = threading.Lock()
        self._ended = False
        self.code = -signal.SIGKILL
        """Its exit code once it has ended, negative for a signal; a server that dies kills it."""

    def lines(self) -> Iterator[str]:
        """What it writes to its standard output, line by line, until it has ended."""
        try:
            with contextlib.suppress(ConnectionError):
                for line in self._lines:
                    if line.startswith(ENDED):
                        self.code = int(line.removeprefix(ENDED))
                        with self._lock:
                            self._ended = True
                    elif line != "\n":
                        yield line
        finally:
            # Nobody is left to hear it.
            self.kill()
            self._lines.close()
            self._channel.close()

    def kill(self) -> None:
        """End it, unless it has ended: its number may be another's by now."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self._ended:
                os.kill(self.pid, signal.SIGKILL)


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    control: socket.socket


_servers: dict[tuple[object, ...], _Server] = {}
_lock = threading.Lock()


def start(
    module: str, arguments: list[str], given: str, environment: dict[str, str],
    numeric: tuple[str, ...], errors: IO[str],
) -> Child:  # fmt: skip
    """A child that runs `main(*arguments)` of the module, with `given` as its standard input.

    `errors` is its error stream. Variables that begin with one of `numeric` are set before any
    library is loaded, all others before the module is.
    """
    request = json.dumps([module, arguments, environment]) + "\n" + given
    key = _key(environment, numeric)
    while True:
        ours, theirs = socket.socketpair()
        server = _asked(key, environment, [theirs.fileno(), errors.fileno()])
        theirs.close()
        lines = ours.makefile("r", encoding="utf-8")
        # One that ends before it has read all is found out by what it does not answer.
        with contextlib.suppress(ConnectionError):
            ours.sendall(request.encode())
            ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            if first := lines.readline():
                return Child(int(first), ours, lines)
        # It had nothing to do and left in this very moment, or was killed.
        lines.close()
        ours.close()
        _forget(key, server)


def _key(environment: dict[str, str], numeric: tuple[str, ...]) -> tuple[object, ...]:
    counting = sorted(i for i in environment.items() if i[0].startswith((*numeric, *LOADED)))
    # What has been installed since must be read anew.
    installed = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns
    return os.getpid(), sys.executable, str(Path.cwd()), installed, *counting


def _asked(key: tuple[object, ...], environment: dict[str, str], descriptors: list[int]) -> _Server:
    with _lock:
        if key not in _servers:
            control, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), str(IDLE_SECONDS)],
                    env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                )  # fmt: skip
            _servers[key] = _Server(process, control)
        server = _servers[key]
        with contextlib.suppress(OSError):
            socket.send_fds(server.control, [b"f"], descriptors)
    return server


def _forget(key: tuple[object, ...], server: _Server) -> None:
    with _lock:
        if _servers.get(key) is server:
            del _servers[key]
            server.control.close()
            server.process.wait()


def _end() -> None:
    for server in _servers.values():
        server.control.close()
        server.process.kill()
        server.process.wait()


atexit.register(_end)


# ---- the server's own process


def main(control: socket.socket, idle_seconds: float) -> None:
    """Fork a child for every pair of descriptors received, and tell how each has ended."""
    # Ctrl-C reaches all processes of a terminal: the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    libraries = list(LIBRARIES)
    children: dict[int, socket.socket] = {}
    quiet_since = time.monotonic()
    while children or time.monotonic() - quiet_since < idle_seconds:
        if libraries:
            importlib.import_module(libraries.pop(0))
        watched = [control.fileno(), woken]
        ready, _, _ = select.select(watched, [], [], 0 if libraries else idle_seconds)
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            _collect(children)
            quiet_since = time.monotonic()
        if control.fileno() in ready:
            asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            if not asked:
                break
            gc.freeze()
            server, pid = os.getpid(), os.fork()
            if not pid:
                others = [control.detach(), woken, wake, *(c.detach() for c in children.values())]
                _child(server, others, *descriptors)
            os.close(descriptors[1])
            children[pid] = socket.socket(fileno=descriptors[0])


def _collect(children: dict[int, socket.socket]) -> None:
    """Tell the exit codes of those that have ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with children.pop(pid) as channel, contextlib.suppress(ConnectionError):
            channel.sendall(f"\n{ENDED}{os.waitstatus_to_exitcode(status)}\n".encode())


def _child(server: int, others: list[int], channel: int, errors: int) -> NoReturn:
    """As a process that has just started would: its descriptors, environment and signals."""
    code = os.EX_SOFTWARE
    try:
        die_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in others:
            os.close(descriptor)
        for own, given in enumerate((channel, channel, errors)):
            os.dup2(given, own)
        os.close(channel)
        os.close(errors)
        print(os.getpid(), flush=True)
        module, arguments, environment = json.loads(sys.stdin.readline())
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        tempfile.tempdir = None
        sys.argv = [module, *arguments]
        importlib.import_module(module).main(*arguments)
        code = os.EX_OK
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else os.EX_SOFTWARE
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the server's is to be ended here, neither its buffers nor what it registered.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, or the thread that made it, ends."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def call_itself(name: str) -> None:
    """Have the kernel list this process by that name, of which it keeps 15 bytes."""
    if sys.platform == "linux":
        set_name = 15
        ctypes.CDLL(None).prctl(set_name, name.encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))
