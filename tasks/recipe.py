"""The recipe: everything a version is a function of, readable, and the digests it led to."""

from collections.abc import Iterable
from typing import Any

from models.spec import Line
from tasks.refs import Snapshot
from tasks.stage import StageRun

DETERMINED = ("clean", "train", "evaluate", "compress")
SETTINGS = ("data", "objective", "model", "training", "budget")


def recipe(line: Line, snapshot: Snapshot, runs: Iterable[StageRun]) -> dict[str, Any]:
    """Snapshot, settings, and for every reproducible stage its identity, key and output digest.

    The listing that led to the snapshot is left out: an ETag tells how an object was uploaded.
    The gate is left out too: its verdict depends on who was champion at the time.
    """
    return {
        "snapshot": snapshot.digest,
        "settings": {
            **line.model_dump(mode="json", include=set(SETTINGS)),
            "confidence": line.gate.confidence,
        },
        "stages": {
            run.name: {"identity": run.identity, "key": run.key, "digest": run.digest}
            for run in runs
            if run.name in DETERMINED
        },
    }
