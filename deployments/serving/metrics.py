"""What Prometheus reads at `/metrics`: one account of all worker processes of a server.

Where PROMETHEUS_MULTIPROC_DIR names a folder, each worker counts in mapped files of its own there,
so counts outlive a killed worker. The variable must be set before this module is imported:
prometheus_client looks once. Labels are lines and versions that were loaded, never what a caller
made up.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import exposition as text
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from deployments.serving import metric_files

FOLDER_SETTING = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = text.CONTENT_TYPE_LATEST
_VERSION = ("line", "version")
_SECONDS = (.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30)  # fmt: skip

metric_files.install()
_latency = Histogram(
    "modelmint_request_seconds",
    "Seconds from the head of a request to its answer, of answers with status 200.",
    (*_VERSION, "verb"),
    buckets=_SECONDS,
)
_rows = Counter("modelmint_rows", "Rows answered.", (*_VERSION, "verb"))
_refusals = Counter("modelmint_refusals", "Answers other than 200.", ("status", "code"))
_batch = Histogram(
    "modelmint_batch_rows",
    "Rows computed together by versions that are batched.",
    _VERSION,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096),
)
_queued = Gauge(
    "modelmint_queue_requests", "Requests waiting.", ("line",), multiprocess_mode="livesum"
)
_cached = Counter("modelmint_cache", "Requests that asked the response cache.", ("line", "result"))

_unreadable = Gauge(
    "modelmint_unreadable",
    "Workers that cannot read a file and go on with what it held.",
    ("file",),
    multiprocess_mode="livesum",
)
_not_journaled = Counter(
    "modelmint_journal_lost", "Requests that the journal could not keep.", ("cause",)
)
_not_captured = Counter(
    "modelmint_capture_dropped_rows", "Rows chosen for monitoring that were not kept.", ("line",)
)


class Answers(NamedTuple):
    """The counters of one version and verb."""

    latency: Histogram
    rows: Counter

    def add(self, seconds: float, rows: int) -> None:
        """One answer with status 200."""
        self.latency.observe(seconds)
        self.rows.inc(rows)


@cache
def answers(line: str, version: str, verb: str) -> Answers:
    """The counters of answers; looked up by name they would cost a request more than counting."""
    return Answers(_latency.labels(line, version, verb), _rows.labels(line, version, verb))


@cache
def batches(line: str, version: str) -> Histogram:
    """Where a version's batches are observed, in rows."""
    return _batch.labels(line, version)


@cache
def queue(line: str) -> Gauge:
    """The number of a line's requests that wait in this process."""
    return _queued.labels(line)


@cache
def lookups(line: str, result: str) -> Counter:
    """Counts what the cache did for a line: `hit` or `miss`."""
    return _cached.labels(line, result)


@cache
def not_captured(line: str) -> Counter:
    """Counts a line's rows that were chosen to be captured and for which there was no room."""
    return _not_captured.labels(line)


def unreadable(file: str, now: bool) -> None:
    """Tell whether this process cannot read a file of the server."""
    _unreadable.labels(file).set(now)


def not_journaled(count: int) -> None:
    """Count requests that the journal lost for want of room on its disk."""
    _not_journaled.labels("disk").inc(count)


def refused(status: int, code: str) -> None:
    """Count an answer that is an error."""
    _refusals.labels(str(status), code).inc()


def exposition() -> bytes:
    """All metrics, of all workers, in Prometheus' text format."""
    folder = os.environ.get(FOLDER_SETTING)
    if folder is None:
        return text.generate_latest(REGISTRY)
    for path in Path(folder).glob("gauge_live*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            # What waited in a killed worker waits no more.
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return text.generate_latest(registry)


def share(folder: Path) -> None:
    """Forget what an earlier server counted in the folder, and make it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.db"):
        path.unlink()
