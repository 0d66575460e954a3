"""The process of a fork server, and what its children are before they run anything of ours.

    python -m tasks.forked IDLE_SECONDS

Its standard input is a socket: `f`, a number and four descriptors fork a child (its standard input,
output and error stream, and where its process id and exit code are told), `k` and a number end one.
"""

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import tempfile
import time
import traceback
from typing import NamedTuple, NoReturn

# What training, export and compression import, in the order they need it; not onnxruntime, which
# starts a thread. Elsewhere than on Linux, the system's own libraries may not be forked.
LIBRARIES = (
    ("torch", "torch._dynamo", "onnxscript", "torch.onnx", "boto3")
    if sys.platform == "linux"
    else ()
)
MESSAGE = 9


class _Forked(NamedTuple):
    pid: int
    status: int


class Server:
    """Forks and ends children as the socket says, until nobody is there to say it."""

    def __init__(self, control: socket.socket, idle_seconds: float) -> None:
        self.control = control
        self.idle_seconds = idle_seconds
        self.children: dict[int, _Forked] = {}
        self.libraries = list(LIBRARIES)
        self.woken, self.wake = os.pipe()
        self.watched = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve; ends the process if whoever started it ends."""
        self._hear()
        self.watched.register(self.control, selectors.EVENT_READ)
        self.watched.register(self.woken, selectors.EVENT_READ)
        quiet_since = time.monotonic()
        while self.children or time.monotonic() - quiet_since < self.idle_seconds:
            if self.libraries:
                self._import(self.libraries.pop(0))
            ready = self.watched.select(0 if self.libraries else self.idle_seconds)
            for key, _ in ready:
                if key.fd == self.woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.woken, 4096)
                    self._collect()
                else:
                    self._obey()
                quiet_since = time.monotonic()

    def _hear(self) -> None:
        # Ctrl-C reaches all processes of a terminal: the parent decides what ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for end in (self.woken, self.wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        if sys.platform == "linux":
            import fcntl

            # An import takes seconds; what the parent started must not outlive it for as long.
            signal.signal(signal.SIGIO, lambda *_: self._look())
            fcntl.fcntl(self.control, fcntl.F_SETOWN, os.getpid())
            flags = fcntl.fcntl(self.control, fcntl.F_GETFL)
            fcntl.fcntl(self.control, fcntl.F_SETFL, flags | os.O_ASYNC)

            # It may have ended before.
            self._look()

    def _look(self) -> None:
        # Not for the end of what was sent: before that, there may be requests nobody waits for.
        poll = select.poll()
        poll.register(self.control, 0)
        if poll.poll(0):
            self._leave()

    def _leave(self) -> NoReturn:
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        os._exit(os.EX_OK)

    def _import(self, name: str) -> None:
        try:
            importlib.import_module(name)
        except Exception:  # whatever is wrong with it: the child that needs it says so
            traceback.print_exc()
            self.libraries.clear()

    def _obey(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE, 4)
        while message and len(message) < MESSAGE:
            message += self.control.recv(MESSAGE - len(message))
        if not message:
            self._leave()
        number = int.from_bytes(message[1:], "big")
        if message[:1] == b"f":
            self._fork(number, *descriptors)
        elif number in self.children:
            os.kill(self.children[number].pid, signal.SIGKILL)

    def _fork(self, number: int, given: int, answers: int, errors: int, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no processes are left: those that run go on
            pid = -(error.errno or errno.EAGAIN)
        if not pid:
            self.watched.close()
            others = [self.woken, self.wake, status, *(c.status for c in self.children.values())]
            _child(server, others, given, answers, errors)
        for descriptor in (given, answers, errors):
            os.close(descriptor)
        _write(status, pid)
        if pid > 0:
            self.children[number] = _Forked(pid, status)
        else:
            os.close(status)

    def _collect(self) -> None:
        """Tell the exit codes of those that have ended."""
        for number, child in list(self.children.items()):
            pid, ended = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self.children[number]
                _write(child.status, os.waitstatus_to_exitcode(ended))
                os.close(child.status)


def _write(descriptor: int, number: int) -> None:
    # Its reader may have lost interest; two short lines always fit into a pipe.
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, f"{number}\n".encode())


def _child(server: int, others: list[int], given: int, answers: int, errors: int) -> NoReturn:
    """As a process that has just started would: its descriptors, environment and signals."""
    code = os.EX_SOFTWARE
    try:
        die_with_parent(server)
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGCHLD, signal.SIGIO):
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for own, descriptor in enumerate((given, answers, errors)):
            os.dup2(descriptor, own)
        for descriptor in (*others, given, answers, errors):
            os.close(descriptor)
        _streams()
        module, arguments, environment = json.loads(sys.stdin.readline())
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        tempfile.tempdir = None
        if numpy := sys.modules.get("numpy"):
            # Its global generator would be the same in all children; Python's own is not.
            numpy.random.seed()
        sys.argv = [module, *arguments]
        importlib.import_module(module).main(*arguments)
        code = os.EX_OK
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the server's is to be ended here, neither its buffers nor what it registered.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _streams() -> None:
    """New ones: the server's may hold what it read or wrote, in its locale's encoding."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


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
    Server(socket.socket(fileno=0), float(sys.argv[1])).run()
