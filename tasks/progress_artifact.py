"""How far a run is, as the bar of a Prefect artifact."""

from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.progress import Event


class ProgressArtifact:
    """A progress listener that moves the bar of an artifact, a percent at a time.

    Every one of the run's stages is an equal part of it; within a stage objects or epochs count.
    """

    def __init__(self, key: str, stages: int = 1) -> None:
        self.stages, self.finished, self.percent = stages, 0, 0
        # Typed as if it might have to be awaited; called outside of a coroutine it never has.
        self.artifact = cast(UUID, create_progress_artifact(0.0, key=key))

    def __call__(self, event: Event) -> None:
        """Move the bar if the event says that something is done."""
        part, told = 0.0, event.detail
        if event.kind == "finished":
            self.finished += 1
        elif "total" in told:
            part = told["done"] / told["total"]
        elif "epochs" in told:
            part = told["epoch"] / told["epochs"]
        else:
            return
        percent = int(100 * (self.finished + part) / self.stages)
        if percent > self.percent:
            self.percent = percent
            update_progress_artifact(self.artifact, float(percent))
