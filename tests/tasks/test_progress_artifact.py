"""The bar of a run, moved from wherever something is told."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect import flow
from prefect.artifacts import Artifact

from tasks.progress import Event, tell
from tasks.progress_artifact import Bar, progress_artifact


def shown(key: str) -> Any:
    found: Any = Artifact.get(key)
    return found.data


async def from_a_loop() -> None:
    """As what a Dask worker tells reaches this process."""
    tell("train", "progress", epoch=1, epochs=4)


@flow
def run(key: str) -> None:
    with progress_artifact(key, stages=2):
        tell("clean", "finished")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, from_a_loop()).result()


@pytest.mark.usefixtures("prefect_service")
def test_what_is_told_in_an_event_loop_moves_the_bar() -> None:
    for key in ("first-run", "second-run-of-this-process"):
        run(key)
        assert shown(key) == 62.0


@pytest.mark.usefixtures("prefect_service")
def test_a_bar_that_cannot_be_moved_is_told_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no server")

    monkeypatch.setattr("tasks.progress_artifact.update_progress_artifact", refuse)
    with caplog.at_level(logging.WARNING, "modelmint.progress"):
        run("third-run")
    assert "is not shown: no server" in caplog.text


def test_the_bar_moves_by_stages_objects_and_epochs_and_never_back() -> None:
    bar = Bar(4)
    told = [
        Event("clean", "started", {}),
        Event("clean", "progress", {"done": 1, "total": 2}),
        Event("clean", "progress", {"done": 1, "total": 2}),
        Event("clean", "finished", {}),
        Event("train", "progress", {"epoch": 3, "epochs": 4}),
        Event("train", "progress", {"epoch": 1, "epochs": 4}),
        Event("train", "finished", {}),
    ]
    moved = []
    for event in told:
        bar.move(event)
        moved.append(bar.percent)
    assert moved == [0, 12, 12, 25, 43, 43, 50]
