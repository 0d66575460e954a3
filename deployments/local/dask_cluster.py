"""The Dask cluster of `modelmint up`: a scheduler and one single-threaded worker a core.

Without it each command starts a cluster of its own (`tasks.cluster`).
"""

import os
import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Service

# Dask spreads the partitions, so nothing inside a worker must spread them again.
THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# As in `tasks.cluster`: what Dask would look at all the time, for pages that nobody has open.
QUIET = {
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
}


def scheduler(home: Path) -> Service:
    """The scheduler; its first port is the one of its status pages."""
    return Service(
        name="dask-scheduler",
        state=home.resolve() / "dask-scheduler",
        command=_scheduler,
        missing=lambda ports: unanswered(ports["http"], "/health", {200}),
        ports=("http", "tcp"),
        environment=lambda _: QUIET,
    )


def workers(home: Path) -> list[Service]:
    """One worker for each core; it joins the scheduler named by DASK_SCHEDULER_ADDRESS."""
    return [_worker(home.resolve(), n) for n in range(1, len(os.sched_getaffinity(0)) + 1)]


def address(ports: Ports) -> str:
    """Where clients and workers find a scheduler on these ports."""
    return f"tcp://{HOST}:{ports['tcp']}"


def environment(home: Path) -> dict[str, str]:
    """The variable with which clients find the scheduler; empty when it is not up."""
    running = scheduler(home).running()
    return {"DASK_SCHEDULER_ADDRESS": address(running.ports)} if running else {}


def _worker(home: Path, number: int) -> Service:
    return Service(
        name=f"dask-worker-{number}",
        state=home / f"dask-worker-{number}",
        command=lambda ports: _command(number, ports),
        missing=lambda ports: unanswered(ports["http"], "/health", {200}),
        environment=lambda _: QUIET | dict.fromkeys(THREADS, "1"),
    )


def _scheduler(ports: Ports) -> list[str]:
    return [
        *(sys.executable, "-m", "distributed.cli.dask_scheduler"),
        *("--host", HOST, "--port", str(ports["tcp"])),
        *("--dashboard-address", f"{HOST}:{ports['http']}"),
    ]


def _command(number: int, ports: Ports) -> list[str]:
    return [
        *(sys.executable, "-m", "distributed.cli.dask_worker"),
        os.environ["DASK_SCHEDULER_ADDRESS"],
        # The process manager restarts it; a nanny would be one more process a worker.
        *("--no-nanny", "--nthreads", "1", "--name", str(number), "--host", HOST),
        *("--dashboard-address", f"{HOST}:{ports['http']}", "--local-directory", "."),
    ]
