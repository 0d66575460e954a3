"""What `make production` needs of Debian: there, installed, or said."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOLD = "apt-get install postgresql redis-server"
PROGRAM = "#!/bin/sh\n"


def services(programs: Path, postgres: str) -> subprocess.CompletedProcess[str]:
    """`make services` where no other programs are, and PostgreSQL's is the one named."""
    make = shutil.which("make")
    assert make is not None
    names = {"PATH": str(programs)}
    words = [make, "services", f"POSTGRES={postgres}"]
    return subprocess.run(words, cwd=ROOT, env=names, capture_output=True, text=True, check=False)


def program(programs: Path, name: str, text: str = "") -> None:
    (programs / name).write_text(PROGRAM + text)
    (programs / name).chmod(0o755)


def test_services_that_are_there_are_no_news(tmp_path: Path) -> None:
    program(tmp_path, "redis-server")
    done = services(tmp_path, "/usr/lib/postgresql/15/bin/postgres")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("postgres", ["", "/usr/lib/postgresql/15/bin/postgres"])
@pytest.mark.parametrize(("user", "installer"), [(1000, True), (0, False)])
def test_who_cannot_install_them_is_told(
    tmp_path: Path, postgres: str, user: int, installer: bool
) -> None:
    program(tmp_path, "id", f"echo {user}")
    if installer:
        program(tmp_path, "apt-get", "exit 99")
    if not postgres:
        program(tmp_path, "redis-server")
    done = services(tmp_path, postgres)
    assert done.returncode == 2
    assert TOLD in done.stderr


def test_root_has_them_installed(tmp_path: Path) -> None:
    program(tmp_path, "id", "echo 0")
    # To install it once more would test Debian.
    program(tmp_path, "apt-get", f'echo "$DEBIAN_FRONTEND $@" >> {tmp_path}/done')
    assert services(tmp_path, "").returncode == 0
    asked = (tmp_path / "done").read_text().splitlines()
    assert asked == [
        " -qq update",
        "noninteractive -qq install --no-install-recommends postgresql redis-server",
    ]
