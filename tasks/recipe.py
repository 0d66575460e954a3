"""The recipe of a version, from the stages that ran."""

from collections.abc import Iterable

from models.spec import Line
from models.version import Recipe, StageIdentity, StageRecord
from tasks.refs import Artifact, Snapshot
from tasks.stage import StageRun

DETERMINED = ("clean", "train", "evaluate", "compress")
SETTINGS = ("data", "objective", "model", "training", "budget")


def recipe(line: Line, snapshot: Snapshot, artifact: Artifact, runs: Iterable[StageRun]) -> Recipe:
    """Snapshot, settings, and for every reproducible stage its identity, key and output digest.

    The listing that led to the snapshot is left out: an ETag tells how an object was uploaded.
    The gate is left out too: its verdict depends on who was champion at the time.
    """
    return Recipe(
        line=line.name,
        snapshot=snapshot.digest,
        settings={
            **line.model_dump(mode="json", include=set(SETTINGS)),
            "confidence": line.gate.confidence,
        },
        stages={
            run.name: StageRecord(
                identity=StageIdentity.model_validate(run.identity),
                key=run.key,
                digest=run.digest,
                fingerprint=run.fingerprint,
            )
            for run in runs
            if run.name in DETERMINED
        },
        artifact=artifact.digest,
    )
