"""Shared by the benchmarks: fresh processes and their cost, turns, medians, result files.

Wall time is the clock's. CPU seconds are what the kernel counted for a process and every
descendant it waited for (`wait4`). Memory is the largest sum of resident sets over the process
tree, sampled by psutil every 25 ms; a page shared by several processes counts once for each, so a
tree of many is overstated. The machine may be busy: compare ratios of neighbours, not seconds.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import psutil

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SAMPLE_SECONDS = 0.025
SAMPLES_A_TREE = 8
"""The tree is listed anew every eighth sample: to list it costs more than to look at it."""
MIB = 1 << 20


class Peak:
    """The largest memory of a process tree, followed by a thread until `stop`."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the sampling; the peak in bytes."""
        self._ended.set()
        self._thread.join()
        return self.bytes

    def _follow(self) -> None:
        tree, count = [self._root], 0
        while not self._ended.wait(SAMPLE_SECONDS):
            if count % SAMPLES_A_TREE == 0:
                try:
                    tree = [self._root, *self._root.children(recursive=True)]
                except psutil.Error:
                    tree = [self._root]
            count += 1
            self.bytes = max(self.bytes, sum(map(_resident, tree)))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class Run(NamedTuple):
    """What a fresh process cost, and the JSON object on the last line it printed."""

    wall: float
    cpu: float
    peak: int
    answer: dict[str, Any]


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command in a fresh process; raises RuntimeError with its last words when it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        peak = Peak(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        memory = peak.stop()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            said = errors.read()[-2000:] + output.read()[-1000:]
            raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {said}")
        lines = output.read().splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Run(wall, usage.ru_utime + usage.ru_stime, memory, answer)


def python(module: str, *arguments: str) -> list[str]:
    """The command for a module of this project in a fresh interpreter."""
    return [sys.executable, "-m", module, *arguments]


def in_turns(contestants: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """Run A B C, B C A, ... so that a slow spell of the machine meets all alike."""
    names, found = list(contestants), {name: list[T]() for name in contestants}
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
            found[name].append(contestants[name]())
    return found


def ratio(over: Iterable[float], under: Iterable[float]) -> float:
    """The median of the quotients of neighbours."""
    return median(a / b for a, b in zip(over, under, strict=True))


def cpu_seconds(pid: int) -> float:
    """CPU seconds a living process has used so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A MODELMINT_HOME that nothing has used before; gone afterwards, as is the variable."""
    before = dict(os.environ)
    # Or what was started would outlive a benchmark whose time ran out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="modelmint-") as folder:
        os.environ["MODELMINT_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(before)


def add_test_lines() -> None:
    """Have the small lines of `tests/lines` count too, here and in processes started from here."""
    os.environ["MODELMINT_LINES"] = str(ROOT / "tests" / "lines")


@contextmanager
def patience(minutes: float) -> Iterator[Callable[[], bool]]:
    """Yields whether time is left; Ctrl-C or SIGTERM ends the block, and what was found until then
    counts."""
    deadline = time.monotonic() + 60 * minutes
    with suppress(KeyboardInterrupt, SystemExit):
        yield lambda: time.monotonic() < deadline


def options(document: str | None, turns: int) -> argparse.ArgumentParser:
    """The parser every benchmark shares."""
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--turns", type=int, default=turns, help="measurements of each contestant")
    return parser


def known(name: str) -> dict[str, Any]:
    """The figures that an earlier run wrote to `results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    return found


def publish(
    name: str, figures: dict[str, Any], rows: Sequence[Mapping[str, Any]], packages: Iterable[str],
    as_json: bool,
) -> None:  # fmt: skip
    """Print the rows as a table, or everything as JSON, and write `results/<name>.json`."""
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in sorted(packages)},
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record) if as_json else _table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [heads, *([str(row.get(head, "")) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def commit() -> str:
    """The commit that is measured, and whether code was changed since."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    code = ["models", "tasks", "flows", "deployments", "modelmint.py", "benchmarks/*.py"]
    status = [*git, "status", "--porcelain", "--", *code]
    changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    return head.stdout.strip()[:12] + (" and uncommitted changes" if changed else "")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
