"""Ranks on machines that share nothing but a network find each other, whatever their names are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.gang import interface
from tests.cluster.conftest import HEAD, WORKERS, Network, dask
from tests.conftest import ROOT

TRAIN = """
import json
from tasks import gang, progress
from tasks.refs import Ref
from tests.tasks.samples import Word
with progress.listening(lambda event: print(json.dumps(event.detail["machines"]))):
    found = gang.together(
        "tests.tasks.samples:machines", Word(text="where"), Ref, ranks=2, stage="train",
        profile="fast", threads=1,
    )
"""


def test_ranks_find_each_other_across_machines(
    network: Network, base: dict[str, str], tmp_path: Path
) -> None:
    with dask(network, tmp_path, base):
        done = subprocess.run(
            network.on(HEAD, sys.executable, "-c", TRAIN),
            env=base, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[0])
    assert sorted(told) == sorted(network.identity(machine) for machine in WORKERS)


def test_gloo_uses_the_interface_of_the_workers_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert interface("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert interface("192.0.2.1") == {}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    assert interface("127.0.0.1") == {}
