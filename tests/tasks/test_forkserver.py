"""What a forked child has of its own, and what happens when the server is not there."""

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks import forked, forkserver
from tasks.forkserver import Child, ServerError

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.tasks.test_forkserver"
NUMERIC = ("OMP_", "OPENBLAS_")


def main(what: str, *arguments: str) -> None:
    """In the child."""
    if what == "tell":
        _tell(*arguments)
    elif what == "sleep":
        print(os.getpid(), flush=True)
        time.sleep(600)
    elif what == "meet":
        # Both ends of a meeting must be there at once.
        with socket.create_connection(("127.0.0.1", int(arguments[0])), 60) as other:
            print(other.recv(100).decode(), flush=True)
    elif what == "echo":
        print(sys.stdin.read(), flush=True)
    elif what == "signal":
        os.kill(os.getpid(), int(arguments[0]))
    elif what == "exit":
        sys.exit({"nothing": None, "a word": "a word"}[arguments[0]])


def _tell(code: str = "0") -> None:
    server = Path(f"/proc/{os.getppid()}")
    said = {
        "given": sys.stdin.read(),
        "own": dict(os.environ),
        "torch": "torch" in sys.modules,
        "pid": os.getpid(),
        "server": os.getppid(),
        "threads": len(list((server / "task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "time zone": time.tzname[0],
        "words": sys.argv,
        "drawn": np.random.random(),
        "project": [m for m in sys.modules if m.partition(".")[0] in ("models", "flows")],
    }
    print(json.dumps(said), flush=True)
    sys.exit(int(code))


@pytest.fixture(autouse=True)
def _children_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@contextmanager
def child(*arguments: str, given: str = "", **variables: str) -> Iterator[Child]:
    with tempfile.TemporaryFile() as errors:
        environment = {**os.environ, **variables}
        yield forkserver.start(HERE, list(arguments), given, environment, NUMERIC, errors)


def ask(code: str = "0", given: str = "", **variables: str) -> tuple[dict[str, Any], int]:
    """What the child tells about itself, and its exit code."""
    with child("tell", code, given=given, **variables) as asked:
        [said] = map(json.loads, asked.lines())
        assert said["pid"] == asked.pid
        return said, asked.code


@pytest.mark.parametrize("threads", [1, 2])
def test_a_server_has_no_threads_but_openblas_and_none_of_our_code(threads: int) -> None:
    # Later children find all libraries imported.
    for _ in range(2):
        said, code = ask(OPENBLAS_NUM_THREADS=str(threads))
        assert code == 0
        assert said["torch"]
        assert said["threads"] == 1
        assert said["project"] == []
        # Input, output, errors, and the folder being listed.
        assert said["descriptors"] == 4


def test_a_child_has_the_input_environment_and_exit_code_of_its_own() -> None:
    latin = {"PYTHONIOENCODING": "latin-1"}
    said, code = ask("7", given='{"Zürich": "\n"}', TZ="UTC", WORD="one", **latin)
    assert (said["given"], said["words"], code) == ('{"Zürich": "\n"}', [HERE, "tell", "7"], 7)
    assert said["own"]["WORD"] == "one"
    assert said["time zone"] == "UTC"
    other, _ = ask(TZ="CET", WORD="two", **latin)
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
    def met(port: int) -> str:
        with child("meet", str(port)) as asked:
            [said] = asked.lines()
            return said.strip()

    with socket.create_server(("127.0.0.1", 0)) as place, ThreadPoolExecutor(4) as pool:
        meetings = [pool.submit(met, place.getsockname()[1]) for _ in range(4)]
        peers = [place.accept()[0] for _ in range(4)]
        for peer in peers:
            with peer:
                peer.sendall(b"all are here")
        assert {meeting.result() for meeting in meetings} == {"all are here"}


def test_jobs_and_answers_may_be_larger_than_any_buffer() -> None:
    text = "ü" * 3_000_000
    with child("echo", given=text) as asked:
        # Another is served while nobody reads what the first has to say.
        assert ask()[1] == 0
        assert "".join(asked.lines()).strip() == text


def test_a_parent_may_have_many_files_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert ask(OMP_NUM_THREADS="5")[1] == 0
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("signal", str(int(signal.SIGKILL))), -signal.SIGKILL),
        (("signal", str(int(signal.SIGINT))), -signal.SIGINT),
        (("exit", "nothing"), 0),
        (("exit", "a word"), 1),
        (("no such thing", "x"), 0),
    ],
)
def test_how_a_child_ended_is_told(words: tuple[str, str], code: int) -> None:
    with child(*words) as asked:
        assert list(asked.lines()) == []
        assert asked.code == code


def test_a_child_can_be_ended_and_once_it_has_ended_nobody_is() -> None:
    with child("sleep") as asked:
        lines = asked.lines()
        next(lines)
        asked.kill()
        assert list(lines) == []
        assert asked.code == -signal.SIGKILL
        asked.kill()
    assert ask()[1] == 0


def test_a_child_nobody_listens_to_any_more_is_ended() -> None:
    with child("sleep") as asked:
        lines = asked.lines()
        process = psutil.Process(int(next(lines)))
        lines.close()
        process.wait(60)


def test_a_server_that_was_killed_takes_its_children_and_is_started_anew() -> None:
    first, _ = ask()
    with child("sleep") as asked:
        lines = asked.lines()
        process = psutil.Process(int(next(lines)))
        psutil.Process(first["server"]).kill()
        assert list(lines) == []
        assert asked.code == -signal.SIGKILL
        process.wait(60)
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


def test_a_server_that_imports_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, time\nopen(os.environ['MARK'], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    mark = tmp_path / "mark"
    program = f"from {HERE} import ask; ask(PYTHONPATH='{tmp_path}:{ROOT}', MARK='{mark}')"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as parent:
        while not (mark.exists() and mark.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        server = psutil.Process(int(mark.read_text()))
        parent.kill()
        gone, alive = psutil.wait_procs([server], timeout=60)
        assert gone or server.status() == psutil.STATUS_ZOMBIE, alive


def test_random_numbers_nobody_seeded_are_no_two_childrens() -> None:
    # The first may be forked before the library is there.
    ask()
    drawn = [ask()[0]["drawn"] for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_a_library_that_cannot_be_imported_is_the_childs_to_tell(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no such processor')")
    said, code = ask(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0
    assert not said["torch"]


def test_a_server_that_cannot_live_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os\nprint('no room', flush=True)\nos._exit(3)")
    with pytest.raises(ServerError, match=r"\(exit code 3\); it last said: no room") as raised:
        ask(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert not raised.value.killed
    (tmp_path / "torch.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(ServerError, match=r"\(SIGKILL\)") as raised:
        ask(PYTHONPATH=f"{tmp_path}:{ROOT}", OMP_NUM_THREADS="6")
    assert raised.value.killed


def test_a_copy_of_the_process_ends_without_the_servers_of_the_original() -> None:
    first, _ = ask()
    copy = os.fork()
    if not copy:
        code = os.EX_SOFTWARE
        try:
            forkserver._end()
            code = os.EX_OK
        finally:
            os._exit(code)
    assert os.waitpid(copy, 0)[1] == 0
    assert ask()[0]["server"] == first["server"]


@pytest.mark.parametrize("name", forked.LIBRARIES)
def test_what_is_imported_ahead_is_there(name: str) -> None:
    importlib.import_module(name)
