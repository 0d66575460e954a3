"""How far a run is, as the bar of a Prefect artifact."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Condition, Thread
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.progress import Event, listening

log = logging.getLogger("modelmint.progress")
# For the last picture; a server that is away holds no run up.
PATIENCE_SECONDS = 10.0


class Bar:
    """Percent of a run that is done."""

    def __init__(self, stages: int) -> None:
        self.stages, self.finished, self.percent = stages, 0, 0

    def move(self, event: Event) -> None:
        """Count what the event says is done: every stage alike, and in it objects or epochs."""
        part, told = 0.0, event.detail
        if event.kind == "finished":
            self.finished += 1
        elif "total" in told:
            part = told["done"] / told["total"]
        elif "epochs" in told:
            part = told["epoch"] / told["epochs"]
        percent = int(100 * (self.finished + part) / self.stages)
        self.percent = max(self.percent, percent)


@contextmanager
def progress_artifact(key: str, stages: int = 1) -> Iterator[None]:
    """Have an artifact's bar follow the stages of the block, by a thread of its own.

    What Dask workers tell arrives in the event loop of its client, where Prefect would give
    coroutines, and in whatever run was current when that client was made.
    """
    # Typed as if it might have to be awaited; called outside of a coroutine it never has.
    artifact = cast(UUID, create_progress_artifact(0.0, key=key))
    bar, changed, ended = Bar(stages), Condition(), False

    def follow(event: Event) -> None:
        with changed:
            bar.move(event)
            changed.notify()

    def show() -> None:
        shown = 0
        while True:
            with changed:
                while bar.percent == shown:
                    if ended:
                        return
                    changed.wait()
                shown = bar.percent
            try:
                update_progress_artifact(artifact, float(shown))
            except Exception as error:  # nothing but a picture: the run goes on
                log.warning("the progress of this run is not shown: %s", error)

    thread = Thread(target=copy_context().run, args=(show,), daemon=True)
    thread.start()
    try:
        with listening(follow):
            yield
    finally:
        with changed:
            ended = True
            changed.notify()
        thread.join(PATIENCE_SECONDS)
