"""Processes that must run at the same time: the ranks of a data-parallel training on Dask.

Each worker runs its ranks in one task; where there are fewer workers than ranks, several share
one. A rank that fails takes the others with it, so that nobody waits for what will not come. When a
worker is gone, killed or cut off, all ranks start again on those that are left.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from tasks import cluster
from tasks.forkserver import Child
from tasks.isolated import IsolatedError, Profile, environment, run
from tasks.refs import Ref

R = TypeVar("R", bound=Ref)

# After a failure: until the others have noticed by themselves, and are ended otherwise.
SECONDS_TO_NOTICE = 5
SECONDS_FOR_A_WORKER = 120
"""Once all workers are gone: until one must be there."""
LOOPBACK = "127.0.0.1"
INTERFACE = "GLOO_SOCKET_IFNAME"


def together(
    target: str, job: BaseModel, result: type[R], *, ranks: int, stage: str, profile: Profile,
    threads: int, gpu: bool = False,
) -> R:  # fmt: skip
    """`isolated`, as so many processes at once, which find each other as torch.distributed does.

    A lost worker is made up for as often as Dask does for other tasks (its setting
    `distributed.scheduler.allowed-failures`). Raises IsolatedError that names the rank which failed
    first, or when the ranks' results differ; LostWorkerError; ValueError for too few workers.
    """
    import dask
    import distributed  # noqa: F401, it brings its settings

    text, variables = job.model_dump_json(), environment(profile, threads)
    failures: int = dask.config.get("distributed.scheduler.allowed-failures")
    for left in range(failures, -1, -1):
        try:
            answers = _run(target, text, variables, (cluster.TOPIC, stage), ranks, gpu)
            break
        except cluster.LostWorkerError as error:
            if not left:
                raise
            _log().warning("%s: %s; all its ranks start again on those left", stage, error)
            _wait_for_workers(ranks if gpu else 1, gpu, error)
    found = [result.model_validate_json(answer) for answer in answers]
    digests = dict.fromkeys(each.digest for each in found)
    if len(digests) > 1:
        raise IsolatedError(f"{target}: the ranks disagree: they gave {', '.join(digests)}")
    return found[0]


def _wait_for_workers(count: int, gpu: bool, lost: cluster.LostWorkerError) -> None:
    """Until so many workers are there that can train; raises `lost` when they do not come."""
    until = time.monotonic() + SECONDS_FOR_A_WORKER
    while len(cluster.workers(gpu=gpu)) < count:
        if time.monotonic() > until:
            raise lost
        time.sleep(1.0)


def _log() -> Any:
    """The log of the run this is a part of, if it is one."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("modelmint.gang")


def _run(
    target: str, job: str, variables: dict[str, str], address: tuple[str, str], ranks: int,
    gpu: bool,
) -> list[str]:  # fmt: skip
    """The JSON answers of all ranks, in order."""
    from distributed import Lock

    cluster.client()
    group = uuid.uuid4().hex
    outcomes: dict[int, tuple[str, str]] = {}
    failed: float | None = None
    # Two gangs that each hold a worker the other waits for would wait for ever.
    with Lock("modelmint-ranks"):
        places = placed(cluster.workers(gpu=gpu), ranks, gpu=gpu)
        variables = {**variables, **_rendezvous(list(places))}
        calls = [
            (worker, _on_worker, target, job, variables, address, group, own, ranks)
            for worker, own in places.items()
        ]
        with _stopping(group, list(places)):
            for said in cluster.at_once(calls, gpu=gpu):
                outcomes |= {rank: (kind, text) for rank, kind, text in json.loads(said or "[]")}
                if failed is None and any(kind != "answer" for kind, _ in outcomes.values()):
                    failed = time.monotonic()
                if failed is not None and time.monotonic() - failed > SECONDS_TO_NOTICE:
                    break
    # A rank that died is the cause; one that lost its peers, or was ended for it, is not.
    for wanted in ("died", "error"):
        for rank, (kind, text) in sorted(outcomes.items()):
            if kind == wanted:
                raise IsolatedError(f"rank {rank} of {ranks}: {text}")
    return [outcomes[rank][1] for rank in range(ranks)]


def _rendezvous(places: list[str]) -> dict[str, str]:
    """The variables by which the ranks find the first of them."""
    host = _host(places[0])
    port = cluster.on(places[0], _free_port, host)
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port)}


def _host(worker: str) -> str:
    return urlsplit(worker).hostname or LOOPBACK


def interface(host: str) -> dict[str, str]:
    """The variable by which gloo uses the network interface that has the address.

    Or it looks this machine up by its name, which may lead nowhere, or where no other machine
    comes. Empty where someone has set it, or no interface has the address.
    """
    import psutil

    if INTERFACE in os.environ:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == host for each in addresses):
            return {INTERFACE: name}
    return {}


def placed(workers: list[str], ranks: int, *, gpu: bool) -> dict[str, list[int]]:
    """Which ranks run on which worker; raises ValueError where ranks would share a GPU."""
    if not workers:
        raise ValueError("no Dask worker is there to train on")
    if gpu and len(workers) < ranks:
        raise ValueError(
            f"training.ranks is {ranks}, and only {len(workers)} Dask workers have a GPU"
        )
    return {w: list(range(i, ranks, len(workers))) for i, w in enumerate(workers[:ranks])}


@contextmanager
def _stopping(group: str, workers: list[str]) -> Iterator[None]:
    """Whatever happens, no process of the group outlives the block."""
    try:
        yield
    finally:
        for worker in set(workers) & set(cluster.workers()):
            cluster.on(worker, stop, group)


_running: dict[str, list[Child]] = {}
_stopped: set[str] = set()
_lock = threading.Lock()


def stop(group: str) -> None:
    """On a worker: end the processes of the group that run there, and any that would start."""
    with _lock:
        _stopped.add(group)
        for process in _running.pop(group, ()):
            process.kill()


def _on_worker(
    target: str, job: str, variables: dict[str, str], address: tuple[str, str], group: str,
    own: list[int], ranks: int,
) -> str:  # fmt: skip
    """Run a worker's ranks; JSON of (rank, `answer`, `error`, `died` or `stopped`, text) each."""
    from distributed import get_worker

    emit = cluster.reporter(*address)
    variables = {**variables, **interface(_host(get_worker().address))}

    def started(process: Child) -> None:
        with _lock:
            _running.setdefault(group, []).append(process)
            if group in _stopped:
                process.kill()

    def one(rank: int) -> tuple[int, str, str]:
        here = {**variables, "RANK": str(rank), "WORLD_SIZE": str(ranks)}
        try:
            return rank, "answer", run(target, job, here, emit, started)
        except IsolatedError as error:
            kind = "stopped" if group in _stopped else "died" if error.died else "error"
            return rank, kind, str(error)

    outcomes: list[tuple[int, str, str]] = []
    with ThreadPoolExecutor(len(own)) as pool:
        for future in as_completed([pool.submit(one, rank) for rank in own]):
            outcomes.append(future.result())
            if outcomes[-1][1] != "answer":
                threading.Timer(SECONDS_TO_NOTICE, stop, [group]).start()
    return json.dumps(outcomes)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
