import subprocess
import sys
from pathlib import Path

import pytest

from deployments.local.rotation import rotate

WRITES = """
import sys
for turn in sys.stdin:
    print(turn, "a line\\n" * 100, file=sys.stderr, flush=True)
    print(flush=True)
"""


def test_who_writes_goes_on_in_the_log_that_began_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for turn in range(3):
        process.stdin.write(f"{turn}\n")
        process.stdin.flush()
        process.stdout.readline()
        written = log.read_text()
        assert written.startswith(f"{turn}\n")
        rotate(log, 100)
        assert log.read_text() == ""
        assert log.with_suffix(".1").read_text() == written
    process.communicate()


def test_a_short_log_and_none_are_left_alone(tmp_path: Path) -> None:
    rotate(tmp_path / "log")
    (tmp_path / "log").write_text("short\n")
    rotate(tmp_path / "log", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_log_that_cannot_be_copied_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    log = tmp_path / "log"
    log.write_text("long\n")
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        rotate(log, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert log.read_text() == "long\n"
