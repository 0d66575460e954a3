import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.isolated import IsolatedError, ResourceError, environment, isolated, run
from tests.tasks.samples import Word

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _children_find_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def ask(function: str, text: str) -> tuple[str, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    job = Word(text=text).model_dump_json()
    answer = run(f"tests.tasks.samples:{function}", job, environment("fast", 1), told.append)
    return Word.model_validate_json(answer).text, told


def test_job_answer_and_progress_pass_through() -> None:
    assert ask("echo", "Zürich\n") == ("Zürich\n", [{"heard": "Zürich\n"}])


def test_what_libraries_print_does_not_reach_the_answer() -> None:
    assert ask("chatter", "x") == ("x", [{"heard": "x"}])


def test_a_process_that_a_child_leaves_behind_is_not_waited_for() -> None:
    answer, [told] = ask("bequeath", "x")
    assert answer == "x"
    psutil.Process(told["heir"]).kill()


def test_bytes_that_are_no_text_do_not_cost_the_answer() -> None:
    assert ask("stammer", "x") == ("x", [])


def test_the_message_of_an_error_passes_through() -> None:
    with pytest.raises(IsolatedError, match="samples:fail: ValueError: it is too hot"):
        ask("fail", "it is too hot")


@pytest.mark.parametrize(("name", "resource"), [("SIGKILL", True), ("SIGSEGV", False)])
def test_a_killed_child_is_named_with_its_signal_and_last_words(name: str, resource: bool) -> None:
    with pytest.raises(
        IsolatedError, match=rf"ended without an answer \({name}\).*about to die of {name}"
    ) as raised:
        ask("die", name)
    assert isinstance(raised.value, ResourceError) is resource


def test_what_the_store_lacks_is_told_from_a_bug() -> None:
    with pytest.raises(ResourceError, match="MissingError: gone"):
        ask("lack", "gone")
    with pytest.raises(IsolatedError) as raised:
        ask("fail", "a bug")
    assert not isinstance(raised.value, ResourceError)


def test_a_full_disk_is_named_with_what_to_do() -> None:
    where = re.escape(tempfile.gettempdir())
    said = rf"No space left on device.*make room in {where}, or name another folder by TMPDIR"
    with pytest.raises(ResourceError, match=said):
        ask("overflow", "a word")


def test_a_child_that_leaves_is_named_with_its_exit_code() -> None:
    with pytest.raises(IsolatedError, match=r"ended without an answer \(exit code 3\)"):
        ask("leave", "3")


def test_a_target_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IsolatedError, match="nothing"):
        ask("nothing", "")


def test_a_job_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(IsolatedError, match="ValidationError"):
        run("tests.tasks.samples:echo", '{"word": 1}', environment("fast", 1), print)


def test_the_profile_is_set_before_the_child_starts() -> None:
    for profile, name, value in (
        ("fast", "OMP_NUM_THREADS", "3"),
        ("portable", "ONEDNN_MAX_CPU_ISA", "AVX2"),
    ):
        assert environment(profile, 3)[name] == value  # type: ignore[arg-type]
    job = Word(text="OMP_NUM_THREADS").model_dump_json()
    answer = run("tests.tasks.samples:variables", job, environment("portable", 3), print)
    assert Word.model_validate_json(answer).text == "3"


def test_the_child_dies_with_its_parent() -> None:
    program = (
        "import json; from tasks.isolated import environment, run\n"
        "run('tests.tasks.samples:sleep', '{\"text\": \"\"}', environment('fast', 1),"
        " lambda detail: print(json.dumps(detail), flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(json.loads(parent.stdout.readline())["pid"])
        server = child.parent()
        parent.send_signal(signal.SIGKILL)
        assert server is not None
        assert server.pid != parent.pid
        for each in (child, server):
            # Whoever adopts it collects it in its own time: a zombie is dead.
            gone, alive = psutil.wait_procs([each], timeout=30)
            assert gone or each.status() == psutil.STATUS_ZOMBIE, alive


def test_on_dask_the_answer_is_the_same_and_so_is_the_error(workers: object) -> None:
    del workers
    fixed: dict[str, Any] = {"stage": "talk", "profile": "fast", "threads": 1}
    job = Word(text="hello")
    assert isolated("tests.tasks.samples:echo", job, Word, **fixed) == job
    with pytest.raises(IsolatedError, match="ValueError: hello"):
        isolated("tests.tasks.samples:fail", job, Word, **fixed)
