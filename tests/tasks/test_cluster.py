"""What a worker must have before it computes for a stage: the code the stage is keyed by."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import catalog
from models.digests import json_digest
from tasks import cluster
from tasks.clean import clean
from tasks.identity import OtherCodeError, check_here
from tasks.refs import Snapshot
from tasks.stage import stage

DIGEST = json_digest("x")


def identity() -> dict[str, object]:
    line = catalog.find("flights")
    snapshot = Snapshot(digest=DIGEST, objects=1, size=1, located=DIGEST)
    return clean.identity(line.data, line.objective, "raw/flights/", snapshot)


def test_this_process_has_its_own_code() -> None:
    check_here(identity())


@pytest.mark.parametrize(
    ("part", "name", "other"),
    [
        ("code", "tasks.clean", "0" * 64),
        ("code", "models.lines.flights:clean", "0" * 64),
        ("code", "models.gone", "0" * 64),
        ("distributions", "polars", "0.1"),
        ("distributions", "no-such-thing", "1.0"),
    ],
)
def test_other_code_or_another_library_is_refused_by_name(part: str, name: str, other: str) -> None:
    changed = identity()
    inner = changed[part]
    assert isinstance(inner, dict)
    changed[part] = {**inner, name: other}
    with pytest.raises(OtherCodeError, match=rf"{name}.*restart it"):
        check_here(changed)


def test_a_worker_with_other_code_refuses_the_stage(workers: object) -> None:
    """As if this process had been edited since the worker read its code."""

    @stage("foreign")
    def foreign() -> object:
        return cluster.run(str, "never computed")

    true = foreign.identity
    foreign.identity = lambda: {**true(), "code": {"tasks.clean": "0" * 64}}  # type: ignore[method-assign]
    with pytest.raises(OtherCodeError, match=r"tasks\.clean"):
        foreign.bare()


def test_a_worker_with_the_same_code_computes(workers: object) -> None:
    @stage("native")
    def native() -> object:
        return cluster.run(str, "computed")

    true = native.identity
    native.identity = lambda: {**true(), "code": {}}  # type: ignore[method-assign]
    assert native.bare() == "computed"


BEGUN_TOGETHER = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from tasks import cluster

together = Barrier(8)

def first(_):
    together.wait()
    return cluster.client()

if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first, range(8)))
    print(len({id(client) for client in found}))
    cluster.close()
"""


def test_tasks_that_begin_together_share_one_cluster(tmp_path: Path) -> None:
    """In a process of its own, for this one has a cluster."""
    script = tmp_path / "together.py"
    script.write_text(BEGUN_TOGETHER)
    environment = {k: v for k, v in os.environ.items() if k != cluster.ADDRESS_SETTING}
    done = subprocess.run(
        [sys.executable, script], env=environment | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1"]


def test_workers_do_not_spend_a_tenth_of_a_core_on_watching_themselves(workers: object) -> None:
    def settings() -> list[object]:
        import dask

        return [dask.config.get(name) for name in cluster.AT_REST]

    for found in cluster.client().run(settings).values():
        assert found == list(cluster.AT_REST.values())
    # What a worker takes that is made later, for one that is gone.
    assert settings() == list(cluster.AT_REST.values())


def process(meeting: str) -> str:
    """Where it runs; with others at a meeting it waits until all of them are there."""
    path = Path(meeting)
    if meeting:
        (path / str(os.getpid())).touch()
        while len(list(path.iterdir())) < 2:
            time.sleep(0.01)
    return str(os.getpid())


def test_calls_one_after_another_are_one_workers_and_calls_at_once_are_not(
    workers: object, tmp_path: Path
) -> None:
    """Each worker that is used starts a fork server, which imports torch."""
    assert len({cluster.run(process, "") for _ in range(4)}) == 1
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(cluster.run, [process] * 2, [str(tmp_path)] * 2))) == 2


def test_where_others_may_have_calls_dask_places_them(
    workers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS_SETTING, cluster.client().scheduler.address)
    assert cluster.run(process, "")
