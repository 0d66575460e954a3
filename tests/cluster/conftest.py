"""Three machines on this one: network namespaces on a bridge, each with its own address alone.

The first holds the store, Dask's scheduler and whoever runs a flow; the other two hold a Dask
worker each, which speaks TLS only. Nothing of this machine's own network is touched, and no two
share even the loopback. Needs root and Debian's iproute2: `make cluster` fails without, a run of
the default tests skips them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from deployments.local.ports import free_ports
from tests.conftest import ROOT
from tests.production.certificates import dask_settings, write_certificates
from tests.production.conftest import running

HEAD, WORKERS = "head", ("worker-1", "worker-2")
ADDRESSES = {name: f"10.77.0.{number}" for number, name in enumerate((HEAD, *WORKERS), 1)}
SCHEDULER = f"tls://{ADDRESSES[HEAD]}:8786"
KEYS = {"AWS_ACCESS_KEY_ID": "of-this-test", "AWS_SECRET_ACCESS_KEY": "of-this-test-too"}
PREPARE = """
import sys, time
from tasks.store import StoreError, store
for _ in range(300):
    try:
        store().create_bucket()
        store().put("ready", b"")
        break
    except StoreError as error:
        last = error
        time.sleep(0.2)
else:
    sys.exit(str(last))
"""


class Network:
    """The namespaces; a machine is called by its name here, `worker-1`."""

    def __init__(self) -> None:
        self.prefix = f"modelmint-{os.getpid()}"

    def namespace(self, machine: str) -> str:
        return f"{self.prefix}-{machine}"

    def on(self, machine: str, *command: str) -> list[str]:
        """The command line that runs the command on a machine."""
        return ["ip", "netns", "exec", self.namespace(machine), *command]

    def identity(self, machine: str) -> str:
        """What processes of the machine have as /proc/self/ns/net."""
        inode = Path("/run/netns", self.namespace(machine)).stat().st_ino
        return f"net:[{inode}]"

    def processes(self, machine: str) -> list[psutil.Process]:
        """Every process on the machine."""
        inside = _ip("netns", "pids", self.namespace(machine)).split()
        return [psutil.Process(int(pid)) for pid in inside if psutil.pid_exists(int(pid))]

    def cut(self, machine: str) -> None:
        """Take the cable out: what is sent from now on is lost, and nobody is told."""
        _ip("-n", self.namespace(HEAD), "link", "set", machine, "down")

    def mend(self, machine: str) -> None:
        """Put the cable back."""
        _ip("-n", self.namespace(HEAD), "link", "set", machine, "up")

    def build(self) -> None:
        """Create machines, bridge and cables."""
        for machine in ADDRESSES:
            _ip("netns", "add", self.namespace(machine))
            _ip("-n", self.namespace(machine), "link", "set", "lo", "up")
        head = ("-n", self.namespace(HEAD))
        _ip(*head, "link", "add", "bridge0", "type", "bridge")
        _ip(*head, "address", "add", f"{ADDRESSES[HEAD]}/24", "dev", "bridge0")
        _ip(*head, "link", "set", "bridge0", "up")
        for machine in WORKERS:
            there = self.namespace(machine)
            cable = ("link", "add", machine, "type", "veth", "peer", "name", "eth0")
            _ip(*head, *cable, "netns", there)
            _ip(*head, "link", "set", machine, "master", "bridge0", "up")
            _ip("-n", there, "address", "add", f"{ADDRESSES[machine]}/24", "dev", "eth0")
            _ip("-n", there, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """End what still runs there, and take all of it away."""
        listed = _ip("netns", "list").split()
        for machine in ADDRESSES:
            if self.namespace(machine) in listed:
                for process in self.processes(machine):
                    process.kill()
                _ip("netns", "delete", self.namespace(machine))


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@pytest.fixture(scope="package")
def network(pytestconfig: pytest.Config) -> Iterator[Network]:
    # Only who asks for slow tests has asked for these.
    lacking = pytest.skip if pytestconfig.getoption("markexpr") == "not slow" else pytest.fail
    if os.geteuid() != 0:
        lacking("network namespaces need root: run it as root")
    if shutil.which("ip") is None:
        lacking("network namespaces need the program ip: apt-get install iproute2")
    found = Network()
    try:
        found.build()
    except RuntimeError as error:
        found.remove()
        lacking(
            f"this machine makes no network namespaces: {error}\n  to mend: run it where root has "
            "CAP_NET_ADMIN and CAP_SYS_ADMIN, as in a container with --privileged"
        )
    yield found
    found.remove()


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every process of the cluster has in its environment; no service is named yet."""
    ours = ("AWS_", "DASK_", "MLFLOW_", "MODELMINT_", "PREFECT_")
    kept = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
    folder = tmp_path_factory.mktemp("tls")
    files = write_certificates(folder / "files", *ADDRESSES.values())
    lines = {"MODELMINT_LINES": str(ROOT / "tests" / "lines"), "PYTHONPATH": str(ROOT)}
    return kept | lines | dask_settings(files) | {"DASK_SCHEDULER_ADDRESS": SCHEDULER}


@contextmanager
def dask(network: Network, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """The scheduler on the head and a worker on each of the others."""
    python = (sys.executable, "-m")
    tls = ("--protocol", "tls", "--no-dashboard", "--host")
    serve = [*python, "distributed.cli.dask_scheduler", *tls, ADDRESSES[HEAD], "--port", "8786"]
    log = folder / "scheduler.log"
    with ExitStack() as started:
        ready = lambda: SCHEDULER in log.read_text()  # noqa: E731
        command = network.on(HEAD, *serve)
        started.enter_context(running(log, command, ready, **environment))
        for name in WORKERS:
            work = [*python, "distributed.cli.dask_worker", SCHEDULER, *tls, ADDRESSES[name]]
            work += ["--nthreads", "1", "--local-directory", str(folder / name)]
            said = folder / f"{name}.log"
            joined = lambda said=said: "Registered to:" in said.read_text()  # noqa: E731
            started.enter_context(running(said, network.on(name, *work), joined, **environment))
        yield


@pytest.fixture(scope="module")
def storage(
    network: Network, base: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """SeaweedFS on the head's address; the variables that name it."""
    folder = tmp_path_factory.mktemp("store")
    identity = {
        "name": "test",
        "credentials": [dict(zip(("accessKey", "secretKey"), KEYS.values(), strict=True))],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    # Its sockets in /tmp are named by port, and the file system is one for all machines.
    ports, address = free_ports(("master", "volume", "filer", "s3"), paired=True), ADDRESSES[HEAD]
    serve = [
        str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder / 'data'}",
        f"-ip={address}", f"-ip.bind={address}", "-master.telemetry=false",
        "-master.resumeState=false", "-master.peers=none", "-master.volumeSizeLimitMB=128",
        f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", "-volume.max=1000",
        "-volume.preStopSeconds=0", "-filer", f"-filer.port={ports['filer']}", "-s3",
        f"-s3.port={ports['s3']}", f"-s3.config={folder / 's3.json'}", "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    names = KEYS | {
        "AWS_ENDPOINT_URL": f"http://{address}:{ports['s3']}",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    prepare = network.on(HEAD, sys.executable, "-c", PREPARE)
    serving = running(folder / "log", network.on(HEAD, *serve), lambda: True, HOME=str(folder))
    with serving as process:
        subprocess.run(prepare, env=base | names, cwd=ROOT, check=True)
        yield base | names
        # Without peers it never ends by itself.
        process.kill()
