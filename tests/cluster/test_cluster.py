"""A version made on three machines is a laptop's, bit for bit, whatever happens to a worker.

Cleaning, of two objects, and training, data-parallel on two ranks, run on workers that share no
more than a network. One run has a worker killed in the middle of training, one has its cable taken
out: the ranks start again on the worker that is left, from their last checkpoint if there is one.

`make cluster` runs it; five minutes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.isolated import name_of
from tests.cluster.conftest import ADDRESSES, HEAD, WORKERS, Network, dask
from tests.conftest import ROOT
from tests.lines import diabetes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LINE = "diabetes"
RUN = ("run", LINE, "--set", "training.ranks=2", "--set", "training.epochs=300", "--json")
# Each half is an object, which one worker cleans.
LAND = tuple(("land", LINE, "--slice", half) for half in diabetes.HALVES)
COMMAND = [sys.executable, "-m", "modelmint"]
BUCKET = "from tasks.store import store; store().create_bucket()"


class Produced:
    """What a run gave, and on which machines its ranks were seen."""

    def __init__(self, answer: dict[str, Any], seen: dict[str, set[str]]) -> None:
        self.answer, self.seen = answer, seen

    @property
    def digests(self) -> dict[str, str]:
        found = {stage["name"]: stage["digest"] for stage in self.answer["stages"]}
        return {**found, "version": self.answer["digest"]}


@pytest.fixture(scope="module")
def laptop(base: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of a run whose two ranks are processes of this machine, on a store of its own."""
    names = {n: v for n, v in base.items() if not n.startswith("DASK_")}
    names |= {"MODELMINT_HOME": str(tmp_path_factory.mktemp("laptop"))}
    for words in (*LAND, RUN):
        done = subprocess.run(
            [*COMMAND, *words], env=names, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return Produced(json.loads(done.stdout), {}).digests


def produce(
    network: Network, storage: dict[str, str], folder: Path,
    disturb: Callable[[], None] | None = None,
) -> Produced:  # fmt: skip
    """Run the line on the cluster in a bucket of its own; disturb it while both ranks train."""
    names = storage | {
        "MODELMINT_HOME": str(folder / "home"),
        "MODELMINT_BUCKET": f"bucket-{folder.name.replace('_', '-')}"[:60].strip("-"),
    }
    with dask(network, folder, names), (folder / "said").open("w+") as errors:
        prepare = network.on(HEAD, sys.executable, "-c", BUCKET)
        subprocess.run(prepare, env=names, cwd=ROOT, check=True)
        for words in LAND:
            land = network.on(HEAD, *COMMAND, *words)
            subprocess.run(land, env=names, cwd=ROOT, check=True, stdout=errors)
        process = subprocess.Popen(
            network.on(HEAD, *COMMAND, *RUN),
            env=names, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        seen: dict[str, set[str]] = {machine: set() for machine in WORKERS}
        while process.poll() is None:
            for machine in WORKERS:
                seen[machine] |= set(ranks(network, machine))
            if disturb is not None and _connected(network):
                together = [p for machine in WORKERS for p in ranks(network, machine).values()]
                # However few steps are left: none is taken before it happens.
                for rank in together:
                    rank.suspend()
                disturb()
                disturb = None
                for rank in together:
                    with suppress(psutil.NoSuchProcess):
                        rank.resume()
            time.sleep(0.1)
        assert disturb is None, "the ranks were never seen to train together"
        errors.seek(0)
        said = errors.read()
        answer = process.communicate()[0]
        assert process.returncode == 0, said[-4000:]
        return Produced(json.loads(answer), seen)


def ranks(network: Network, machine: str) -> dict[str, psutil.Process]:
    """The processes that train on the machine now, by rank."""
    names = {name_of("tasks.trainer:fit", str(rank)): str(rank) for rank in range(len(WORKERS))}
    found = {}
    for process in network.processes(machine):
        with suppress(psutil.Error, KeyError):
            found[names[process.name()]] = process
    return found


def _connected(network: Network) -> bool:
    """Whether the rank on the second machine holds a connection to the first one's address."""
    peer = bytes(reversed(ip_address(ADDRESSES[WORKERS[0]]).packed)).hex().upper()
    for process in ranks(network, WORKERS[1]).values():
        with suppress(OSError, psutil.Error):
            own = {n.readlink().name for n in Path(f"/proc/{process.pid}/fd").iterdir()}
            for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]:
                _, _, remote, state, *_, inode = line.split()[:10]
                # State 01 is an established connection.
                if remote.startswith(peer) and state == "01" and f"socket:[{inode}]" in own:
                    return True
    return False


def test_ranks_on_two_machines_give_the_version_of_a_laptop(
    network: Network, storage: dict[str, str], laptop: dict[str, str], tmp_path: Path
) -> None:
    found = produce(network, storage, tmp_path)
    assert found.digests == laptop
    assert sorted(found.seen.values()) == [{"0"}, {"1"}]


def test_a_worker_killed_in_training_costs_no_bit(
    network: Network, storage: dict[str, str], laptop: dict[str, str], tmp_path: Path
) -> None:
    def kill() -> None:
        # Its nanny too, which would start another.
        for process in network.processes(WORKERS[1]):
            process.kill()

    found = produce(network, storage, tmp_path, kill)
    assert found.digests == laptop
    assert found.seen[WORKERS[0]] == {"0", "1"}


def test_a_worker_cut_off_in_training_costs_no_bit(
    network: Network, storage: dict[str, str], laptop: dict[str, str], tmp_path: Path
) -> None:
    try:
        found = produce(network, storage, tmp_path, lambda: network.cut(WORKERS[1]))
    finally:
        network.mend(WORKERS[1])
    assert found.digests == laptop
    assert found.seen[WORKERS[0]] == {"0", "1"}
