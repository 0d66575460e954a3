"""Without what the cluster is made of, `make cluster` fails and says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEST = "tests/cluster/test_ranks.py::test_ranks_find_each_other_across_machines"


@pytest.mark.parametrize(
    ("marks", "code", "told"), [("not slow", 0, "1 skipped"), ("slow or not slow", 1, "1 error")]
)
def test_a_machine_that_lacks_something_skips_only_what_nobody_asked_for(
    tmp_path: Path, marks: str, code: int, told: str
) -> None:
    words = [sys.executable, "-m", "pytest", "-n", "0", "-rs", "-m", marks, TEST]
    # No program is found.
    names = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        words, cwd=ROOT, env=names, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout
    assert told in done.stdout
    need = "apt-get install iproute2" if os.geteuid() == 0 else "run it as root"
    assert need in done.stdout
