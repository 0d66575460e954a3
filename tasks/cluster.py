"""Dask: the cluster at DASK_SCHEDULER_ADDRESS, or one of this machine's cores for this process."""

import atexit
import json
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tasks import progress

if TYPE_CHECKING:
    from distributed import Client

# Of this process alone: others may use the same scheduler.
TOPIC = f"modelmint-progress-{uuid.uuid4().hex}"
ADDRESS_SETTING = "DASK_SCHEDULER_ADDRESS"
SECONDS_BETWEEN_LOOKS = 1
# Dask looks at the stack of every worker each 10 ms and at every event loop each 20 ms, for pages
# that nobody has open: more than a tenth of a core, whatever there is to do.
AT_REST = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}
T = TypeVar("T")
_starting = threading.Lock()
_placing = threading.Lock()
_calls: Counter[str] = Counter()


class LostWorkerError(RuntimeError):
    """A worker ended with what it was doing."""


def client() -> "Client":
    """The client of this process; a cluster started for it ends with the process."""
    # `cache` alone would let tasks that begin together start a cluster each.
    with _starting:
        return _client()


@cache
def _client() -> "Client":
    import dask
    from distributed import Client, LocalCluster

    address = os.environ.get(ADDRESS_SETTING)
    if address:
        found = Client(address)
    else:
        # One thread a worker: Dask spreads the partitions, so Polars must not spread them again.
        single = {f"distributed.nanny.pre-spawn-environ.{n}": "1" for n in _THREADS}
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        # For good: a worker that is made anew later takes what is set then.
        dask.config.set(single | AT_REST)
        cluster = LocalCluster(
            n_workers=len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            # What a worker raises is raised here too; its log would only say it twice.
            silence_logs=logging.CRITICAL,
        )
        found = Client(cluster)
        atexit.register(cluster.close)
    atexit.register(found.close)
    found.subscribe_topic(TOPIC, _relay)
    return found


_THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def close() -> None:
    """End the connection, and the cluster if it was started for this process."""
    with _starting:
        if _client.cache_info().currsize:
            found = _client()
            _client.cache_clear()
            found.close()
            if found.cluster is not None:
                found.cluster.close()


def device() -> Literal["cpu", "cuda"]:
    """Where training will run: CUDA if a worker offers the resource GPU, or this machine has it."""
    if os.environ.get(ADDRESS_SETTING):
        return "cuda" if any("GPU" in w.get("resources", {}) for w in _known().values()) else "cpu"
    built_for_cpu = metadata.version("torch").endswith("+cpu")
    return "cuda" if Path("/dev/nvidiactl").exists() and not built_for_cpu else "cpu"


def run(function: Callable[..., str], *args: Any, gpu: bool = False) -> str:
    """Run a function on a worker, on one with the resource GPU if asked, and wait."""
    # A cluster of this process has no resources to ask for: its one machine has the device.
    resources = {"GPU": 1} if gpu and os.environ.get(ADDRESS_SETTING) else None
    with _place() as places:
        future = client().submit(
            _checked, _identity(), function, *args,
            pure=False, resources=resources, workers=places,
            allow_other_workers=places is not None,
        )  # fmt: skip
        result: str = future.result()
    return result


@contextmanager
def _place() -> Iterator[list[str] | None]:
    """The worker for one call, in a list: of a cluster of this process the first that has none.

    Dask would send one after the other round to all, and each starts a fork server of its own, for
    which it imports torch. Elsewhere there may be others' calls, so None leaves it to Dask.
    """
    there = [] if os.environ.get(ADDRESS_SETTING) else workers()
    if not there:  # or one is just being started again
        yield None
        return
    with _placing:
        place = min(there, key=lambda worker: _calls[worker])
        _calls[place] += 1
    try:
        yield [place]
    finally:
        with _placing:
            _calls[place] -= 1


def spread(
    function: Callable[..., str], items: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, str]]:
    """Run `function(*item)` for every item on the workers; yields (index, result) as they end.

    A few items a worker are under way at a time, so that a million items need no memory here.
    """
    from distributed import as_completed

    found, identity = client(), _identity()
    waiting = enumerate(items)
    indices: dict[Any, int] = {}
    running = as_completed()

    def submit() -> bool:
        following = next(waiting, None)
        if following is None:
            return False
        index, item = following
        future = found.submit(_checked, identity, function, *item, pure=False)
        indices[future.key] = index
        running.add(future)
        return True

    for _ in range(4 * max(1, len(found.ncores()))):
        if not submit():
            break
    for future in running:
        yield indices.pop(future.key), future.result()
        submit()


def workers(*, gpu: bool = False) -> list[str]:
    """Addresses of the workers, in order; of those with the resource GPU if asked."""
    wanted = gpu and os.environ.get(ADDRESS_SETTING)
    return sorted(a for a, w in _known().items() if not wanted or "GPU" in w.get("resources", {}))


def _known() -> dict[str, Any]:
    """What the scheduler says of every worker, by address."""
    found = client()
    assert found.scheduler is not None
    # `scheduler_info` gives what is cached last, and Dask itself caches answers without workers.
    answer: dict[str, Any] = found.sync(found.scheduler.identity, n_workers=-1)
    return dict(answer["workers"])


def at_once(calls: Iterable[tuple[Any, ...]], *, gpu: bool = False) -> Iterator[str | None]:
    """Run `function(*args)` of every (worker, function, *args) on that very worker.

    Yields the results as they end, and None every second in between. What has not started is given
    up when the caller leaves. Raises LostWorkerError when a worker is gone.
    """
    from distributed import wait

    found, identity = client(), _identity()
    resources = {"GPU": 1} if gpu and os.environ.get(ADDRESS_SETTING) else None
    places = {
        found.submit(
            _checked, identity, function, *args,
            workers=[worker], pure=False, retries=0, resources=resources,
        ): worker
        for worker, function, *args in calls
    }  # fmt: skip
    waiting = set(places)
    try:
        while waiting:
            try:
                done, waiting = wait(waiting, SECONDS_BETWEEN_LOOKS, "FIRST_COMPLETED")
            except TimeoutError:
                done = set()
            for future in done:
                yield future.result()
            lost = {places[future] for future in waiting} - set(workers())
            if lost:
                raise LostWorkerError(f"Dask worker {', '.join(sorted(lost))} is gone")
            yield None
    finally:
        found.cancel(list(waiting))


def on(worker: str, function: Callable[..., T], *args: Any) -> T:
    """Run a function in a worker's process now, whatever else it is doing, and give its answer."""
    answers: dict[str, T] = client().run(function, *args, workers=[worker])
    return answers[worker]


def _identity() -> str:
    """The identity of the stage that asks, as text; empty outside of a stage."""
    from tasks.stage import current_identity

    identity = current_identity()
    return json.dumps(identity, sort_keys=True) if identity else ""


def _checked(identity: str, function: Callable[..., str], *args: Any) -> str:
    """On a worker: run the function, if this process has the code the stage is keyed by."""
    if identity:
        _check(identity)
    return function(*args)


@lru_cache(maxsize=16)
def _check(identity: str) -> None:
    from tasks.identity import check_here

    check_here(json.loads(identity))


def reporter(topic: str, stage: str) -> Callable[[dict[str, Any]], None]:
    """Called on a worker: tells the listeners of the process whose topic it is, from any thread."""
    from distributed import get_worker

    worker = get_worker()
    return lambda detail: worker.log_event(topic, {"stage": stage, "detail": detail})


def _relay(event: tuple[Any, Any]) -> None:
    message = event[1]
    progress.tell(message["stage"], "progress", **message["detail"])
