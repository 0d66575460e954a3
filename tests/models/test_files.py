"""A file is replaced whole, with its mode from its first byte on."""

import os
import stat
from pathlib import Path

import pytest

from models.files import write


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_file_is_replaced_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(0o022)
    try:
        write(path, b"new", mode)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


def test_only_its_owner_reads_it_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(tmp_path / "secret", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_what_was_there_survives_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
