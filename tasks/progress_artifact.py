"""How far a run is, as the bar of a Prefect artifact."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.progress import Event, listening

log = logging.getLogger("modelmint.progress")


@contextmanager
def progress_artifact(key: str, stages: int = 1) -> Iterator[None]:
    """Have an artifact's bar follow the stages of the block, a percent at a time.

    Every one of them is an equal part of it; within a stage objects or epochs count.
    """
    # Typed as if it might have to be awaited; called outside of a coroutine it never has.
    artifact = cast(UUID, create_progress_artifact(0.0, key=key))
    bar = Bar(stages)
    # What Dask workers tell arrives in the event loop of its client, where Prefect would give
    # coroutines, and in whatever run was current when that client was made.
    current = copy_context()
    with ThreadPoolExecutor(1) as requests:

        def follow(event: Event) -> None:
            percent = bar.moved(event)
            if percent is not None:
                sent = requests.submit(
                    current.run, update_progress_artifact, artifact, float(percent)
                )
                sent.add_done_callback(_told)

        with listening(follow):
            yield


def _told(sent: "Future[Any]") -> None:
    # Nothing but a picture: the run goes on.
    if error := sent.exception():
        log.warning("the progress of this run is not shown: %s", error)


class Bar:
    """Percent of a run that is done."""

    def __init__(self, stages: int) -> None:
        self.stages, self.finished, self.percent = stages, 0, 0

    def moved(self, event: Event) -> int | None:
        """Where the bar is now, if the event moved it."""
        part, told = 0.0, event.detail
        if event.kind == "finished":
            self.finished += 1
        elif "total" in told:
            part = told["done"] / told["total"]
        elif "epochs" in told:
            part = told["epoch"] / told["epochs"]
        else:
            return None
        percent = int(100 * (self.finished + part) / self.stages)
        if percent <= self.percent:
            return None
        self.percent = percent
        return percent
