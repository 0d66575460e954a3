"""Replays: how many of how many versions come out the same, bit for bit, in every stage.

    python -m benchmarks.replays [--json] [--fast 4] [--portable 4] [--workers 1,2,4]
        [--cores idle,busy] [--minutes 90]

Two hours on two cores; `--minutes` or Ctrl-C cuts it short, and `--add` keeps what runs published
before it found: each replay names its commit. One version of each line in
each numeric profile is produced on the two Dask workers of a laptop run: `diabetes` is an MLP,
`digits` a small CNN with random affine augmentation, `prose` a GRU language model with dropout,
`chimes` a transformer with random masking. Then `flows.replay.replay` makes each again,
every stage from the raw objects with nothing cached, on Dask clusters of 1, 2 and 4 workers, first
with the cores idle and then with one busy loop a core beside it: each line four times in each
profile and each of the six places.
"Idle" means that this benchmark keeps nothing else running; other programs of the machine may.

Goal: all identical.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

from benchmarks import measuring
from benchmarks.platforms import SINGLE
from models import catalog
from models.spec import Gate
from tasks.isolated import Profile


class Case(NamedTuple):
    """A line, the slices landed of its example data, and what is changed of it."""

    line: str
    slices: tuple[str, ...]
    model: dict[str, Any]
    epochs: int


CASES = (
    Case("diabetes", ("first", "second"), {}, 5),
    Case("digits", ("shard-0",), {"size": "tiny"}, 1),
    Case("prose", ("wine", "iris"), {}, 2),
    Case("chimes", ("first", "second"), {}, 2),
)
PACKAGES = ("torch", "numpy", "polars", "dask", "distributed", "onnx", "onnxruntime", "prefect")


def main() -> None:
    """Measure, print, write the result."""
    options = _options()
    from deployments.local.stack import PREFECT, SERVER, STORE, stack

    found: list[dict[str, Any]] = []
    commit = measuring.commit()
    with measuring.temporary_home():
        measuring.add_test_lines()
        with stack(STORE, PREFECT, SERVER):
            versions = _produced()
            sizes = [int(size) for size in options.workers.split(",")]
            loads = options.cores.split(",")
            with measuring.patience(options.minutes) as time_is_left:
                for profile, load, workers in itertools.product(_passes(options), loads, sizes):
                    if not time_is_left():
                        break
                    with _busy(load == "busy"), _dask(workers):
                        for line, number in versions[profile].items():
                            if time_is_left():
                                place: dict[str, Any] = {"line": line, "profile": profile}
                                place |= {"workers": workers, "cores": load, "commit": commit}
                                found.append({**place, **_replayed(line, number)})
                                print(found[-1], file=sys.stderr, flush=True)
    if options.add:
        found = measuring.known("replays").get("all", []) + found
    rows = _rows(found)
    figures = {
        "identical": sum(f["identical"] for f in found),
        "tried": len(found),
        "goal": "all",
        "by line and profile": rows,
        "all": found,
    }
    measuring.publish("replays", figures, rows, PACKAGES, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--fast", type=int, default=4, help="replays of `fast` in each place")
    parser.add_argument("--portable", type=int, default=4, help="of `portable`")
    parser.add_argument("--minutes", type=float, default=90.0, help="no new replay after so long")
    parser.add_argument("--add", action="store_true", help="to what is published already")
    parser.add_argument("--workers", default="1,2,4", help="sizes of the Dask clusters")
    parser.add_argument("--cores", default="idle,busy", help="with busy loops beside it or without")
    return parser.parse_args()


def _passes(options: argparse.Namespace) -> list[Profile]:
    """The profile of each pass through all places: the first of each profile come first."""
    counts: dict[Profile, int] = {"fast": options.fast, "portable": options.portable}
    pairs = [(turn, profile) for profile, count in counts.items() for turn in range(count)]
    return [profile for _, profile in sorted(pairs)]


def _produced() -> dict[Profile, dict[str, int]]:
    """One version of every line in every profile: its number, by profile and line."""
    # Prefect reads its environment when it is imported, and that names the services now.
    from flows.produce import produce
    from tasks import cluster
    from tasks.land import land

    versions: dict[Profile, dict[str, int]] = {profile: {} for profile in get_args(Profile)}
    try:
        for case in CASES:
            line = catalog.find(case.line)
            for part in case.slices:
                land(line, part)
            for profile, numbers in versions.items():
                changed = {"epochs": case.epochs, "profile": profile}
                training = line.training.model_copy(update=changed)
                # So few epochs meet no floor; what is refused is registered and replayed as well.
                done = produce(case.line, case.model, training, Gate(floors={}))
                numbers[case.line] = done.version.number
    finally:
        cluster.close()
    return versions


def _replayed(line: str, number: int) -> dict[str, Any]:
    """Whether the version came out the same; where not, the first stage or why there is none."""
    from flows.replay import replay

    start = time.perf_counter()
    try:
        result = replay(line, number)
    except Exception as error:
        # A replay that fails is one that was tried and not identical.
        said = f"{type(error).__name__}: {error}"
        return {"identical": False, "seconds": time.perf_counter() - start, "failed": said}
    return {
        "identical": result.verdict == "identical",
        "seconds": round(time.perf_counter() - start, 2),
        "first difference": result.first_difference,
    }


@contextmanager
def _dask(workers: int) -> Iterator[None]:
    """A Dask cluster of so many workers that DASK_SCHEDULER_ADDRESS names."""
    import dask
    from distributed import LocalCluster

    from tasks import cluster

    single = {f"distributed.nanny.pre-spawn-environ.{name}": "1" for name in SINGLE}
    with (
        dask.config.set(single),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as scheduler,
    ):
        os.environ[cluster.ADDRESS_SETTING] = scheduler.scheduler_address
        try:
            yield
        finally:
            cluster.close()
            del os.environ[cluster.ADDRESS_SETTING]


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """One busy loop for every core, if wanted."""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Identical of tried: a line and profile a row, a place a column."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, profile in dict.fromkeys((f["line"], f["profile"]) for f in found):
        mine = [f for f in found if (f["line"], f["profile"]) == (name, profile)]
        row = rows[name, profile] = {"line": name, "profile": profile}
        for place in dict.fromkeys((f["workers"], f["cores"]) for f in mine):
            there = [f for f in mine if (f["workers"], f["cores"]) == place]
            row[f"{place[0]} {place[1]}"] = _share(there)
        row["in all"] = _share(mine)
    return list(rows.values())


def _share(found: list[dict[str, Any]]) -> str:
    return f"{sum(f['identical'] for f in found)}/{len(found)}"


if __name__ == "__main__":
    main()
