"""Modelmint as a contestant of `benchmarks.cleaning`, which starts it in a fresh process.

    python -m benchmarks.cleaning_modelmint all
    python -m benchmarks.cleaning_modelmint increment CORES TURNS

The store is the one the environment names. `all` cleans what has been landed; `increment` lands
months in buckets of its own and cleans them in steps, on some of the cores.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

from models import catalog
from models.lines.flights import MONTHS, line
from models.statistics import Moments, fold
from tasks import cluster
from tasks.clean import clean
from tasks.dataset import manifest
from tasks.land import land
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.store import store

MONTHS_USED = MONTHS[:7]


def main(what: str, *numbers: str) -> None:
    """Work and print the figures as JSON."""
    try:
        if what == "all":
            cluster.client().run(ready)
            print(json.dumps(_clean_all()))
        else:
            cores, turns = map(int, numbers)
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
            print(json.dumps(_in_steps(turns)))
    finally:
        cluster.close()


def ready() -> None:
    """Import what a worker needs and connect: nobody's imports are timed."""
    importlib.import_module("tasks.clean")
    catalog.modules()
    store()


def _clean_all() -> dict[str, Any]:
    start = time.perf_counter()
    prefix = raw_prefix(line.data)
    snapshot = take_snapshot.bare(prefix, list_objects(line.data))
    snapped = time.perf_counter()
    dataset = clean.bare(line.data, line.objective, prefix, snapshot)
    done = time.perf_counter()
    summaries: list[Any] = [
        (p.features[label], p.targets[label])
        for p in manifest(dataset).partitions
        for label in p.labels
    ]
    parts = {
        name: [Moments(**features["numbers"][name]) for features, _ in summaries]
        for name in summaries[0][0]["numbers"]
    }
    parts[line.objective.target] = [Moments(**target) for _, target in summaries]
    return {
        "seconds": done - start,
        "snapshot seconds": snapped - start,
        "rows": sum(dataset.rows.values()),
        "means": {name: fold(found, Moments.merge).mean for name, found in parts.items()},
    }


def _in_steps(turns: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"full": [], "increment": []}
    for turn in range(turns + 1):
        seconds = {"full": _turn(turn, 0), "increment": _turn(turn, len(MONTHS_USED) - 1)}
        # The first turn warms the workers.
        if turn:
            for name, value in seconds.items():
                found[name].append(value)
    return found


def _turn(turn: int, known: int) -> float:
    """Seconds to clean all months when the first `known` are cleaned, in a bucket of its own."""
    bucket = f"cores-{len(os.sched_getaffinity(0))}-turn-{turn}-known-{known}"
    use_bucket(bucket)
    cluster.client().run(use_bucket, bucket)
    store().create_bucket()
    for month in MONTHS_USED[:known]:
        land(line, month)
    if known:
        _clean_all()
    for month in MONTHS_USED[known:]:
        land(line, month)
    return float(_clean_all()["seconds"])


def use_bucket(name: str) -> None:
    """Work in this bucket from now on; called here and on every worker."""
    os.environ["MODELMINT_BUCKET"] = name


if __name__ == "__main__":
    main(*sys.argv[1:])
