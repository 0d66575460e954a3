"""Show a scoring run to people: its progress and its result as Prefect artifacts."""

from typing import cast
from uuid import UUID

from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from tasks.progress import Event
from tasks.score import Scored


class ProgressArtifact:
    """A progress listener that moves the bar of an artifact, a percent at a time."""

    def __init__(self, key: str) -> None:
        self.percent = 0
        # Typed as if it might have to be awaited; called outside of a coroutine it never has.
        self.artifact = cast(UUID, create_progress_artifact(0.0, key=key))

    def __call__(self, event: Event) -> None:
        """Move the bar if the event says how many of how many are done."""
        if event.kind == "finished":
            self._move(100)
        elif "total" in event.detail:
            self._move(100 * event.detail["done"] // event.detail["total"])

    def _move(self, percent: int) -> None:
        if percent > self.percent:
            self.percent = percent
            update_progress_artifact(self.artifact, float(percent))


def show_scored(scored: Scored) -> None:
    """Rows answered, rows refused by reason, and where the manifest is."""
    rows = [{"rows": scored.scored, "what": "answered"}]
    rows += [{"rows": r.rows, "what": f"{r.field}: {r.reason}"} for r in scored.refusals]
    rows += [{"rows": 0, "what": f"{key} changed meanwhile: run again"} for key in scored.missed]
    create_table_artifact(
        key=f"{scored.line}-scored",
        table=rows,
        description=(
            f"{scored.rows:,} rows of {scored.objects:,} objects by version {scored.version};"
            f" {scored.manifest}"
        ),
    )
