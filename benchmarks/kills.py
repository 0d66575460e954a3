"""Kills: is the version the same one when `modelmint run` is killed anywhere and run again?

    python -m benchmarks.kills [--json] [--kills 50] [--minutes 30] [--seed 0] [--add]

About half an hour on two idle cores; `--minutes` or Ctrl-C cuts it short, and `--add`, with another
seed, keeps what runs published before it found: each kill names its commit. One run of
`tests/lines/diabetes.py` that nothing disturbs gives the digest and the timeline. Then, each time
with a bucket, a registry and a model server that nothing has used, the command is started and
killed with SIGKILL, and run again to its end. Three times of four everything dies at once, the
command's whole process group: Dask workers, stages in isolation; the moments are spread evenly,
from a random start, over the time after the imports, and told from the last process of the command
that started before, for a busy machine is not even. Every fourth time only the process that trains
dies, at a random moment of its life, and the command fails by itself. `met` is the first stage the
second run had to compute: the one the kill interrupted.

A kill that comes after the command has ended does not count and is done again. Store and Prefect
server live on: they are services. The registry is a copy of an empty MLflow database.

Goal: every second run ends with the digest of the undisturbed one, registered once, as version 1.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import measuring
from models import catalog
from tasks.isolated import name_of

LINE = "diabetes"
TRAINER = name_of("tasks.trainer:fit")
EVERY = 4
"""One kill in so many hits the training process alone."""
WORKERS = "workers"
BEFORE_WORKERS = 1.0
"""Seconds that a run lists and hashes before it starts Dask workers."""
EVEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio, modulo 1, are spread evenly however many there are."""
GIVE_UP = 1200.0
"""Seconds after which a run counts as one that hangs."""
POLL = 0.03
PACKAGES = ("prefect", "mlflow", "dask", "distributed", "torch")


class Timeline(NamedTuple):
    """The undisturbed run: its version digest, and seconds from the start of the process."""

    digest: str
    marks: dict[str, float]
    """When each kind of process below the command was first seen."""
    seconds: float
    training: float
    """How long the training process lives."""

    def moment(self, share: float) -> tuple[str, float]:
        """That share of the time after the imports: the mark before it, and seconds since then."""
        first = self.marks[WORKERS] - BEFORE_WORKERS
        at = first + share * (self.seconds - first)
        mark, since = max(
            ((name, seen) for name, seen in self.marks.items() if seen <= at),
            key=lambda pair: pair[1],
            default=("", 0.0),
        )
        return mark, at - since


class Trial(NamedTuple):
    """One kill and what came of it; `failed` says in what words the second run did, if it did."""

    killed: str
    seconds: float
    met: str
    digest: str
    version: int
    failed: str
    identical: bool
    commit: str


def main() -> None:
    """Measure, print, write the result."""
    options = _options()
    before = measuring.known("kills") if options.add else {}
    known = [Trial(**trial) for trial in before.get("all", ())]
    command = _command(options.epochs)
    chance = random.Random(options.seed)
    trials: list[Trial] = []
    from deployments.local.stack import PREFECT, STORE, stack

    with measuring.temporary_home() as home:
        measuring.add_test_lines()
        with stack(STORE, PREFECT):
            empty = _registry(home)
            with _unused(empty, "reference"):
                timeline = _undisturbed(command)
            print(timeline, file=sys.stderr, flush=True)
            start, late = chance.random(), 0
            with measuring.patience(options.minutes) as time_is_left:
                while len(trials) < options.kills and time_is_left():
                    number = len(trials)
                    with _unused(empty, f"kill-{number}-{late}"):
                        share = (start + (number + late) * EVEN) % 1.0
                        found = _trial(command, timeline, number, share, chance)
                    if found is None:
                        late += 1
                    else:
                        trials.append(found)
                        print(
                            f"{number + 1} of {options.kills}: {found}", file=sys.stderr, flush=True
                        )
    late += before.get("ended before the kill", 0)
    _publish(options, timeline, [*known, *trials], late)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--kills", type=int, default=50, help="how often to kill")
    parser.add_argument("--minutes", type=float, default=30.0, help="no new kill after so long")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--add", action="store_true", help="to what is published already")
    return parser.parse_args()


def _publish(
    options: argparse.Namespace, timeline: Timeline, trials: list[Trial], late: int
) -> None:
    figures: dict[str, Any] = {
        "identical": sum(t.identical for t in trials),
        "killed": len(trials),
        "goal": "50/50",
        "killed whole": sum(t.killed == "all" for t in trials),
        "killed training alone": sum(t.killed == "training" for t in trials),
        "met": dict(Counter(t.met for t in trials)),
        "ended before the kill": late,
        "undisturbed": timeline._asdict(),
        "all": [t._asdict() for t in trials],
    }
    rows = [
        {
            "met": met,
            "kills": count,
            "identical": sum(t.identical for t in trials if t.met == met),
        }
        for met, count in figures["met"].items()
    ]
    rows.append({"met": "in all", "kills": len(trials), "identical": figures["identical"]})
    measuring.publish("kills", figures, rows, PACKAGES, options.json)


def _command(epochs: int) -> list[str]:
    settings = [f"training.epochs={epochs}", "gate.floors={}"]
    changes = [word for setting in settings for word in ("--set", setting)]
    return measuring.python("modelmint", "run", LINE, *changes, "--json")


def _registry(home: Path) -> Path:
    """An empty MLflow database: to make one anew takes as long as a run."""
    path = home / "empty.db"
    make = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{path}').search_experiments()"
    measuring.run([sys.executable, "-c", make])
    return path


@contextmanager
def _unused(empty: Path, bucket: str) -> Iterator[None]:
    """A bucket with the line's example data, a registry and a model server of their own."""
    from deployments.local.stack import HOME_SETTING, SERVER, create_bucket, stack
    from tasks.land import land
    from tasks.store import BUCKET_SETTING

    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="modelmint-") as folder:
        registry = Path(folder) / "mlflow.db"
        shutil.copyfile(empty, registry)
        os.environ[HOME_SETTING] = folder
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{registry}"
        os.environ[BUCKET_SETTING] = bucket
        try:
            create_bucket()
            for part in ("first", "second"):
                land(catalog.find(LINE), part)
            with stack(SERVER):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _undisturbed(command: list[str]) -> Timeline:
    start = time.perf_counter()
    marks: dict[str, float] = {}
    training = 0.0
    with _started(command) as (process, output):
        while process.poll() is None:
            now = time.perf_counter() - start
            seen = _below(process)
            for name in seen:
                marks.setdefault(name, now)
            if TRAINER in seen:
                training = now - marks[TRAINER]
            time.sleep(POLL)
        seconds = time.perf_counter() - start
        answer = _answer(output)
    if process.returncode or not {WORKERS, TRAINER} <= marks.keys():
        raise RuntimeError(f"the undisturbed run: exit code {process.returncode}: {answer}")
    return Timeline(answer["digest"], marks, seconds, training)


def _trial(
    command: list[str], timeline: Timeline, number: int, share: float, chance: random.Random
) -> Trial | None:
    """Kill the command and run it again; None when it had ended before."""
    alone = number % EVERY == EVERY - 1
    moment = timeline.moment(share)
    start = time.perf_counter()
    with _started(command) as (process, _):
        mark, since = (TRAINER, chance.random() * timeline.training) if alone else moment
        marked = _awaited(process, mark) if mark else psutil.Process(process.pid)
        with suppress(subprocess.TimeoutExpired):
            process.wait(since)
        if marked is None or process.poll() is not None:
            return None
        seconds = time.perf_counter() - start
        if alone:
            with suppress(psutil.NoSuchProcess):
                marked.kill()
            if process.wait(GIVE_UP) == 0:
                return None
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with _started(command) as (process, output):
        with suppress(subprocess.TimeoutExpired):
            process.wait(GIVE_UP)
        code = process.poll()
        answer = _answer(output)
    computed = [stage["name"] for stage in answer.get("stages", ()) if not stage["cached"]]
    return Trial(
        killed="training" if alone else "all",
        seconds=round(seconds, 3),
        met=computed[0] if computed else "nothing",
        digest=answer.get("digest", ""),
        version=answer.get("version", 0),
        failed=f"exit code {code}: {answer}" if code != 0 else "",
        identical=(answer.get("digest"), answer.get("version")) == (timeline.digest, 1),
        commit=measuring.commit(),
    )


@contextmanager
def _started(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """The command, leading a process group of its own; nothing of the group is left at the end."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=measuring.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process, output
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _below(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Dask workers and stages in isolation below the command, by what they are."""
    found: dict[str, psutil.Process] = {}
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                name = child.name()
                if ":" in name:
                    found[name] = child
                elif any("spawn_main" in word for word in child.cmdline()):
                    found[WORKERS] = child
    return found


def _awaited(process: subprocess.Popen[bytes], name: str) -> psutil.Process | None:
    """The process of that name below the command, once it is there; None if the command ends."""
    while process.poll() is None:
        found = _below(process).get(name)
        if found is not None:
            return found
        time.sleep(POLL)
    return None


def _answer(output: Any) -> dict[str, Any]:
    output.seek(0)
    lines = output.read().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return found


if __name__ == "__main__":
    main()
