import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import catalog
from models.catalog import LineError, UnknownLineError
from models.spec import Line

ROOT = Path(__file__).resolve().parents[2]
LINE = """
from models.lines.digits import line as digits
def load(part):
    yield "a", b"{mark}"
line = digits.model_copy(update={{
    "name": "{name}", "example": digits.example.model_copy(update={{"load": load}})
}})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(catalog.SETTING, str(tmp_path))
    return tmp_path


def test_the_shipped_lines_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalog.SETTING, raising=False)
    found = catalog.lines()
    assert {"digits", "flights"} <= set(found)
    assert all(line.name == name for name, line in found.items())
    assert catalog.find("digits") is found["digits"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownLineError, match=r"no line is called 'cats'.*digits, fashion"):
        catalog.find("cats")


def test_a_file_in_a_folder_of_ours_is_a_line_like_any_other(folder: Path) -> None:
    (folder / "mine_1.py").write_text(LINE.format(name="mine", mark="x"))
    found = catalog.find("mine")
    assert found is catalog.find("mine")
    assert Line.model_validate_json(found.model_dump_json()) == found


def test_a_new_process_finds_it_too(folder: Path) -> None:
    (folder / "mine_2.py").write_text(LINE.format(name="mine-2", mark="x"))
    program = "from models import catalog; print(*catalog.lines())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "mine-2" in done.stdout.split()


def test_several_folders_are_separated_like_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 4):
        (tmp_path / str(number)).mkdir()
        text = LINE.format(name=f"mine-{number}", mark="x")
        (tmp_path / str(number) / f"mine_{number}.py").write_text(text)
    monkeypatch.setenv(catalog.SETTING, os.pathsep.join(str(tmp_path / str(n)) for n in (3, 4)))
    assert {"mine-3", "mine-4"} <= set(catalog.lines())


def test_two_lines_of_one_name_are_an_error(folder: Path) -> None:
    (folder / "mine_5.py").write_text(LINE.format(name="digits", mark="x"))
    said = r"mine_5.py: a line 'digits' is defined elsewhere too"
    with pytest.raises(LineError, match=said):
        catalog.lines()
    with pytest.raises(LineError, match=said):
        catalog.find("digits")
    assert "flights" in catalog.sound()[0]


def test_a_file_without_a_line_is_an_error(folder: Path) -> None:
    (folder / "mine_6.py").write_text("name = 'mine'")
    with pytest.raises(ValueError, match=r"mine_6.py: binds no Line to the name `line`"):
        catalog.lines()


def test_a_file_that_fails_fails_the_same_way_every_time(folder: Path) -> None:
    (folder / "mine_7.py").write_text("\nline = 1 / 0")
    for _ in range(2):
        with pytest.raises(LineError, match=r"mine_7.py:2: ZeroDivisionError: division by zero"):
            catalog.lines()


def test_a_file_that_fails_takes_no_other_line_with_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "mine_8.py").write_text("line = ")
    (folder / "mine_10.py").write_text("raise SystemExit(1)")
    (folder / "mine_9.py").write_text(LINE.format(name="mine-9", mark="x"))
    found, (exits, broken) = catalog.sound()
    assert re.search(r"mine_10.py:1: SystemExit: 1", str(exits))
    assert {"digits", "mine-9"} <= set(found)
    assert re.search(r"mine_8.py: SyntaxError: .*line 1", str(broken))
    assert catalog.find("mine-9") is found["mine-9"]
    assert "modelmint_lines.mine_9" in {module.__name__ for module in catalog.modules()}
    assert "mine_8.py: SyntaxError" in caplog.text
    with pytest.raises(LineError, match=r"mine_8.py"):
        catalog.find("mine-8")


def test_a_folder_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalog.SETTING, str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"MODELMINT_LINES: there is no folder .*none"):
        catalog.lines()
