"""A disk that fills up in the middle of a run, on a small file system of the test's own.

Stated: the run ends with an error that names the disk and what to do; nothing of a version is
registered; once there is room the next run goes on from the last finished stage, to the same bits.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deployments.local.stack import HOME_SETTING, STORE, stack
from tasks.isolated import name_of
from tests.conftest import environment
from tests.deployments.disks import fill, small_disk
from tests.deployments.stacks import Home, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LINE = "diabetes"
TRAINS = "tasks.trainer:fit"


@contextmanager
def stopped(run: subprocess.Popen[str], target: str) -> Iterator[None]:
    """The run, with the child process that computes the target held at its beginning."""
    found: list[psutil.Process] = []

    def computing() -> bool:
        assert run.poll() is None, run.communicate()
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                if process.name() == name_of(target):
                    found.append(process)
            except psutil.Error:
                continue
        return bool(found)

    until(computing)
    found[0].suspend()
    try:
        yield
        found[0].resume()
    except BaseException:
        found[0].kill()
        run.kill()
        raise


def takes_objects() -> bool:
    """Whether the store writes now."""
    from tasks.store import StoreError, store

    try:
        # An empty object, or a tiny one, needs no room.
        store().put("probe", os.urandom(100_000))
    except StoreError:
        return False
    return True


def registered(home: Home) -> list[str]:
    """What there is of any version, in the bucket and in MLflow."""
    from tasks.store import store

    return [o.key for o in store().list(f"versions/{LINE}/")] + [
        version["digest"] for version in home.versions(LINE)
    ]


def test_a_full_disk_of_the_store_costs_what_was_not_finished(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with (
        small_disk(tmp_path / "home" / "store", 600) as disk,
        environment(**{HOME_SETTING: str(home.folder)}),
        stack(STORE),
    ):
        home.run("land", LINE)
        run = home.start("run", LINE, "--json")
        with stopped(run, TRAINS):
            filler = fill(disk, 50 << 20)
            # It looks at its disk once a minute.
            until(lambda: not takes_objects(), seconds=90)
        said = "".join(run.communicate(timeout=300))
        assert run.returncode == 1, said[-3000:]
        assert f"MiB are free on the disk of {disk}" in said
        assert "make room there" in said
        assert registered(home) == []
        filler.unlink()
        until(takes_objects, seconds=90)
        again = json.loads(home.run("run", LINE, "--json"))
        stages = {stage["name"]: stage["cached"] for stage in again["stages"]}
        assert stages["clean"]
        assert not stages["train"]
        # Every stage anew, from the recipe: the same bits.
        home.run("replay", LINE, "1")
