"""What a forked child has of its own, and what happens when the server is not there."""

import importlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import forkserver

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.tasks.test_forkserver"
NUMERIC = ("OMP_", "OPENBLAS_")


def main(*arguments: str) -> None:
    """In the child: tell about it."""
    server = Path(f"/proc/{os.getppid()}")
    said = {
        "arguments": arguments,
        "given": sys.stdin.read(),
        "own": dict(os.environ),
        "torch": "torch" in sys.modules,
        "pid": os.getpid(),
        "server": os.getppid(),
        "server's threads": len(list((server / "task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "time zone": time.tzname[0],
        # What was there before this module was imported, of ours.
        "project": [m for m in sys.modules if m.partition(".")[0] in ("models", "flows")],
    }
    print(json.dumps(said), flush=True)
    if arguments:
        sys.exit(int(arguments[0]))


@pytest.fixture(autouse=True)
def _children_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def ask(*arguments: str, given: str = "", **variables: str) -> tuple[dict[str, Any], int]:
    """What the child said, and its exit code."""
    with tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, **variables}
        child = forkserver.start(HERE, list(arguments), given, environment, NUMERIC, errors)
        said = [json.loads(line) for line in child.lines()]
        errors.seek(0)
        assert len(said) == 1, errors.read()
        assert said[0]["pid"] == child.pid
        return said[0], child.code


def test_a_server_has_one_thread_and_none_of_our_code() -> None:
    # Later children find all libraries imported.
    for _ in range(2):
        said, code = ask(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        assert code == 0
        assert said["torch"]
        assert said["server's threads"] == 1
        assert said["project"] == []
        # Input, output, errors, and the folder being listed.
        assert said["descriptors"] == 4


def test_a_child_has_the_input_environment_and_exit_code_of_its_own() -> None:
    said, code = ask("7", given='{"Zürich": "\n"}', OMP_NUM_THREADS="1", TZ="UTC-5", WORD="one")
    assert (said["arguments"], said["given"], code) == (["7"], '{"Zürich": "\n"}', 7)
    assert said["own"]["WORD"] == "one"
    assert said["time zone"] == "UTC"
    other, _ = ask(OMP_NUM_THREADS="1", TZ="CET", WORD="two")
    assert other["own"]["WORD"] == "two"
    assert other["time zone"] == "CET"
    assert other["server"] == said["server"]
    assert other["pid"] != said["pid"]


def test_what_counts_when_a_library_is_loaded_has_a_server_of_its_own() -> None:
    one, two = (ask(OMP_NUM_THREADS=count)[0] for count in ("1", "2"))
    assert one["server"] != two["server"]
    environment = Path(f"/proc/{two['server']}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=2" in environment


def test_children_run_side_by_side() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: ask(str(number)), range(8)))
    assert [code for _, code in found] == list(range(8))
    assert len({said["pid"] for said, _ in found}) == 8


def test_a_server_that_was_killed_is_started_anew() -> None:
    first, _ = ask()
    psutil.Process(first["server"]).kill()
    second, code = ask()
    assert code == 0
    assert second["server"] != first["server"]


def test_a_server_without_work_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "IDLE_SECONDS", 0.01)
    first, _ = ask(OMP_NUM_THREADS="3")
    psutil.Process(first["server"]).wait(60)
    second, code = ask(OMP_NUM_THREADS="3")
    assert code == 0
    assert second["server"] != first["server"]


def test_a_child_nobody_listens_to_any_more_is_ended() -> None:
    with tempfile.TemporaryFile("w+") as errors:
        child = forkserver.start(HERE, [], "", dict(os.environ), NUMERIC, errors)
        lines = child.lines()
        next(lines)
        lines.close()
        process = psutil.Process(child.pid) if psutil.pid_exists(child.pid) else None
        if process is not None:
            process.wait(60)
    child.kill()


@pytest.mark.parametrize("name", forkserver.LIBRARIES)
def test_what_is_imported_ahead_is_there(name: str) -> None:
    importlib.import_module(name)
