"""Show a replay to people: its table as a Prefect artifact."""

from collections.abc import Iterable
from typing import Any

from prefect.artifacts import create_table_artifact

from models.version import Recipe
from tasks.replay import Compared


def show_replay(
    line: str,
    version: int,
    wanted: Iterable[str],
    recipe: Recipe | None,
    done: Iterable[Compared],
    verdict: str,
    reason: str,
) -> None:
    """Every wanted stage, recorded and replayed, and the verdict with its reason.

    A stage that was not computed says `cannot`; without a recipe, one that nothing proves, no
    recorded digest is known.
    """
    found = {stage.stage: stage for stage in done}
    recorded = {} if recipe is None else {n: s.digest for n, s in recipe.stages.items()}

    def row(name: str) -> dict[str, Any]:
        stage = found.get(name)
        if stage is None:
            last: tuple[Any, ...] = "cannot", recorded.get(name), None, reason
        else:
            outcome = "identical" if stage.identical else "differs"
            last = outcome, stage.recorded, stage.replayed, stage.changed
        # What counts comes first: whole digests would push it out of the page.
        columns = ("stage", "outcome", "recorded", "replayed", "reason")
        return dict(zip(columns, (name, *last), strict=True))

    said = f"{line} version {version}: {verdict}"
    create_table_artifact(
        key=f"{line}-replay",
        table=[row(name) for name in wanted],
        description=f"{said}: {reason}" if reason else said,
    )
