"""One service shared by the processes of a checkout: the first starts it, the last stops it.

Every user holds a shared `flock` on `users.lock`. The kernel drops it with its process, so a user
killed with -9 never counts. Starting and stopping happen under an exclusive `flock` on
`start.lock`, so they never meet.

Under `modelmint up` the process of the service itself is such a user (`keep`): it stays when the
commands that share it end, and whoever restarts it is the process manager. Ports are remembered,
so that a restart does not move what others have the address of.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from deployments.local import record as records
from deployments.local.locks import exclusive, join, leave
from deployments.local.ports import HOST, Ports, free_ports, occupied, taken
from deployments.local.processes import (
    MARK,
    POLL,
    age,
    alive,
    end,
    family,
    find,
    identity_of,
    listens,
)
from deployments.local.record import Record
from deployments.local.rotation import rotate

ATTEMPTS = 3
LOG_LINES = 15
OTHER_PORTS = "`modelmint down`, then `modelmint up`, which chooses others"
ROOT = Path(__file__).resolve().parents[2]


class ServiceError(RuntimeError):
    """A local service cannot be used; the message says why, where its log is and what to do."""


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    name: str
    url: str
    pid: int
    ports: Ports
    log: Path


@dataclass(frozen=True)
class Service:
    """How to start, recognise and stop one service.

    Attributes:
        name: what errors call it.
        state: its folder: locks, record, log; also its working directory.
        command: the command line for the ports it was given; runs under the start lock, so it may
            also write the files the command reads.
        missing: what still keeps the service on these ports from serving; None once it serves.
        ports: a name for each port it needs; the first one is the port of its URL.
        paired: whether each port + 10000 must be free as well.
        environment: variables to add for these ports.
        hidden: prefixes of variables the service must not inherit.
        tidy: removes what the service leaves outside `state`; called when it has gone.
        disk: bytes that must be free in `state` before a start.
        start_timeout: seconds until it must serve.
        stop_timeout: seconds between SIGTERM and SIGKILL.
        patience: seconds a service that already runs has to answer before it is replaced.
    """

    name: str
    state: Path
    command: Callable[[Ports], list[str]]
    missing: Callable[[Ports], str | None]
    ports: tuple[str, ...] = ("http",)
    paired: bool = False
    environment: Callable[[Ports], dict[str, str]] = lambda _: {}
    hidden: tuple[str, ...] = ()
    tidy: Callable[[Ports], None] = lambda _: None
    disk: int = 0
    start_timeout: float = 60.0
    stop_timeout: float = 10.0
    patience: float = 10.0

    @property
    def log(self) -> Path:
        """Where the service's output is appended."""
        return self.state / "log"

    @property
    def _mark(self) -> str:
        return str(self.state.resolve())

    @property
    def _record(self) -> Path:
        return self.state / "service.json"

    @contextmanager
    def use(self) -> Iterator[Running]:
        """Start the service or find it running; stop it on exit when nobody else uses it.

        Raises:
            ServiceError: it cannot be started, does not serve in time, or cannot be stopped.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "users.lock").open("a") as user:
            with self._start_lock():
                join(user)
                running = self._found() or self._started()
            try:
                yield running
            finally:
                with self._start_lock():
                    if leave(user):
                        self._end()

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        # Longer than its holder can need: who waits this long waits for a process that is stuck.
        longest = ATTEMPTS * (self.start_timeout + self.stop_timeout) + self.patience + 60
        # The folder may have been deleted while the service ran; it must still be stopped.
        self.state.mkdir(parents=True, exist_ok=True)
        lock = self.state / "start.lock"
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(lock, longest))
            except TimeoutError as error:
                self._fail(str(error), f"end that process: fuser -v {lock}")
            yield

    def start(self) -> Running:
        """Start the service or find it running, and leave it running; raises ServiceError."""
        self.state.mkdir(parents=True, exist_ok=True)
        with self._start_lock():
            return self._found() or self._started()

    def stop(self) -> None:
        """End every process of the service, whoever uses it; raises ServiceError."""
        if self.state.exists():
            with self._start_lock():
                self._end()

    def running(self) -> Running | None:
        """The service if its process lives, whether or not it answers."""
        record = records.read(self._record)
        alive_now = record is not None and find(record.pid, record.identity) is not None
        return self._running(record) if record is not None and alive_now else None

    def plan(self, others: Collection[int] = frozenset()) -> Ports:
        """The ports of its process, else the remembered ones if free, else new ones; remembered.

        None that is chosen is one of `others`, which its siblings will listen on: all of them are
        free while all are down. Raises ServiceError when no port is free.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with self._start_lock():
            record, running = records.read(self._record), self.running()
            return record.ports if record is not None and running else self._ports(others)

    def keep(self) -> NoReturn:
        """Become the service on its planned ports, or wait while a process of it lives.

        For a process manager: this process turns into the service, keeping its number, and ends
        when the service does. Exits when it cannot, and the log says why.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        # A file and not the manager's pipe: the service must survive its manager.
        with self.log.open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        user = (self.state / "users.lock").open("a")
        try:
            with self._start_lock():
                join(user)
                found = self._found()
                if found is None:
                    self._become(user.fileno())
        except ServiceError as error:
            sys.exit(str(error))
        process = psutil.Process(found.pid)
        while alive(process):
            time.sleep(1)
        sys.exit(f"{self.name}: the process {found.pid} that was found running has ended")

    def _become(self, user: int) -> NoReturn:
        self._check_disk()
        self._end()
        ports = self._remembered()
        if ports is None:
            self._fail("no ports were chosen for it", OTHER_PORTS)
        if strangers := taken(ports, paired=self.paired):
            named = ", ".join(str(port) for port in strangers)
            self._fail(f"another program listens on port {named}", f"end it, or {OTHER_PORTS}")
        command = self.command(ports)
        this = os.getpid()
        record = Record(this, identity_of(this), ports, command, kept=True)
        records.write(self._record, record)
        environment = self._environment(ports)
        # The shared lock goes along: while the service lives it has a user.
        os.set_inheritable(user, True)
        os.chdir(self.state)
        os.execvpe(command[0], command, environment)

    def _found(self) -> Running | None:
        record = records.read(self._record)
        if record is None:
            return None
        process = find(record.pid, record.identity)
        if process is None:
            return None
        # One that is only just starting under a process manager is nobody's leftover.
        young = self.start_timeout - age(process) if record.kept else 0.0
        if self._awaited(process, record.ports, max(self.patience, young)) is not None:
            return None
        return self._running(record)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.state).free
        if free < self.disk:
            self._fail(
                f"no free disk: {free} bytes in {self.state}, {self.disk} are needed",
                "free some space there, or choose another home",
            )

    def _known(self) -> Ports:
        """Every port it ever remembered and has not given up, those of options not in use too."""
        try:
            ports = json.loads((self.state / "ports.json").read_text())
        except (OSError, ValueError):
            return {}
        return ports if isinstance(ports, dict) else {}

    def _remembered(self) -> Ports | None:
        known = self._known()
        return {n: known[n] for n in self.ports} if set(self.ports) <= set(known) else None

    def _ports(self, others: Collection[int] = frozenset()) -> Ports:
        """The remembered ports if they are free, and new ones, which are remembered, for others."""
        known = self._known()
        kept = {name: known[name] for name in self.ports if name in known}
        own = occupied(kept, paired=self.paired)
        if set(others).intersection(own) or taken(kept, paired=self.paired):
            kept, known = {}, {}
        wanted = [name for name in self.ports if name not in kept]
        if not wanted:
            return kept
        try:
            drawn = free_ports(wanted, paired=self.paired, others={*others, *own})
        except OSError as error:
            self._fail(str(error), "end the programs that listen on so many ports")
        partial = self.state / "ports.partial"
        partial.write_text(json.dumps(known | drawn))
        partial.replace(self.state / "ports.json")
        return {name: (kept | drawn)[name] for name in self.ports}

    def _started(self) -> Running:
        self._check_disk()
        # What is alive but does not serve goes first: two of a kind would share one data folder.
        self._end()
        with suppress(OSError):
            # On a full disk it stays as long as it is.
            rotate(self.log)
        for attempt in range(1, ATTEMPTS + 1):
            ports = self._ports()
            log_start = self.log.stat().st_size if self.log.exists() else 0
            try:
                record, problem = self._launched(ports)
            except BaseException:
                self._end()
                raise
            if problem is None:
                return self._running(record)
            self._end()
            # Somebody was quicker: other ports may do, unless this happens every time.
            if attempt == ATTEMPTS or not taken(ports, paired=self.paired):
                self._fail(f"{problem}{self._tail(log_start)}", "mend what the log says")
        raise AssertionError("the last attempt either returns or fails")

    def _environment(self, ports: Ports) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(self.hidden or ("\0",))}
        environment = kept | self.environment(ports) | {MARK: self._mark}
        path = [str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, path)))
        return environment

    def _launched(self, ports: Ports) -> tuple[Record, str | None]:
        command, environment = self.command(ports), self._environment(ports)
        with self.log.open("ab") as log:
            try:
                # In a session of its own, Ctrl-C in the terminal does not reach the service
                # before its users have finished with it.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.state,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                self._fail(f"{command[0]} cannot be run ({error})", "install it")
        # Collects the exit status whenever it comes, so a killed service is no zombie of ours.
        threading.Thread(target=process.wait, daemon=True).start()
        record = Record(process.pid, identity_of(process.pid), ports, command)
        child = find(record.pid, record.identity)
        if child is None:
            return record, "exited at once"
        records.write(self._record, record)
        return record, self._awaited(child, ports, self.start_timeout)

    def _awaited(self, process: psutil.Process, ports: Ports, seconds: float) -> str | None:
        """Wait until the process serves; returns what is wrong when it exits or time is up."""
        deadline = time.monotonic() + seconds
        port = ports[self.ports[0]]
        while True:
            problem = self.missing(ports)
            if not alive(process):
                return "exited before it served"
            if problem is None and not listens(family(self._mark, process), port):
                problem = f"port {port} is answered by another program"
            if problem is None:
                return None
            if time.monotonic() > deadline:
                return f"does not serve after {seconds:g} s: {problem}"
            time.sleep(POLL)

    def _end(self) -> None:
        record = records.read(self._record)
        root = find(record.pid, record.identity) if record else None
        left = end(family(self._mark, root), self.stop_timeout)
        # A child born while its parent was being told to stop is only seen now.
        left = left or end(family(self._mark), 0)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            self._fail(f"pid {pids} survived SIGKILL", "look for a hung disk")
        if record:
            self.tidy(record.ports)
            self._record.unlink(missing_ok=True)

    def _running(self, record: Record) -> Running:
        url = f"http://{HOST}:{record.ports[self.ports[0]]}"
        return Running(self.name, url, record.pid, record.ports, self.log)

    def _tail(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        return "".join(f"\n    {line}" for line in lines)

    def _fail(self, wrong: str, mend: str) -> NoReturn:
        raise ServiceError(f"{self.name}: {wrong}\n  log: {self.log}\n  to mend: {mend}")
