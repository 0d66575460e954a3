"""The Prefect worker of `modelmint up`: it deploys every flow and line, then runs what is due.

python -m deployments.local.prefect_worker
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from deployments.local import forms
from deployments.local.model_server import FIRST_KEY
from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import ROOT, Service
from deployments.local.stack import home
from models import catalog
from models.digests import bytes_digest
from models.spec import Line

POOL = "modelmint"
FILE = ROOT / "prefect.yaml"
# A variable of Prefect's own, so that it goes with the database the deployments are in.
STAMP = "modelmint_deployed"


def prefect_worker(home: Path) -> Service:
    """The worker of the process pool `modelmint`, at the server named by PREFECT_API_URL."""
    return Service(
        name="prefect-worker",
        state=home.resolve() / "prefect-worker",
        command=lambda _: [sys.executable, "-m", "deployments.local.prefect_worker"],
        missing=lambda ports: unanswered(ports["http"], "/health", {200}),
        environment=_settings,
        start_timeout=180.0,
        # Long enough for a run in progress to be told; what it had finished is kept.
        stop_timeout=15.0,
    )


def _settings(ports: Ports) -> dict[str, str]:
    return {
        "PREFECT_WORKER_WEBSERVER_HOST": HOST,
        "PREFECT_WORKER_WEBSERVER_PORT": str(ports["http"]),
        # The default of 10 s would be most of the time from an event to its run.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }


def deploy() -> None:
    """Deploy prefect.yaml and each line that is not in it, unless this server has them.

    What was edited in its UI stays, until the file, or the line, is another; forms follow the code
    all the same. Raises TimeoutError when the server does not answer, CalledProcessError or
    httpx.HTTPStatusError when it refuses.
    """
    wanted = bytes_digest(FILE.read_bytes())
    file = yaml.safe_load(FILE.read_text())
    ours = {one["entrypoint"] for one in file["deployments"]}
    with httpx.Client(base_url=os.environ["PREFECT_API_URL"], timeout=30, trust_env=False) as api:
        _await(api)
        found = api.get(f"/variables/name/{STAMP}")
        known = found.status_code == 200
        due = [] if known and found.json()["value"] == wanted else file["deployments"]
        own = [one for one in map(deployment, _lines()) if one["entrypoint"] not in ours]
        due += [one for one in own if not _deployed(api, one)]
        if due:
            _deploy(api, {**file, "deployments": due})
            told = {"name": STAMP, "value": wanted}
            path = f"/variables/name/{STAMP}" if known else "/variables/"
            api.request("PATCH" if known else "POST", path, json=told).raise_for_status()
        forms.renew(api, POOL, {*ours, *(one["entrypoint"] for one in own)})


def deployment(line: Line) -> dict[str, Any]:
    """An entry like those of prefect.yaml; its version tells whether the line was changed since."""
    return {
        "name": line.name,
        "version": bytes_digest(line.model_dump_json().encode())[:16],
        "description": f"{line.title}, produced when someone asks for it.",
        "entrypoint": f"flows.lines.{line.name}",
        "parameters": {"line": line.name},
        "work_pool": {"name": POOL},
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "enforce_parameter_schema": True,
    }


def _lines() -> list[Line]:
    found, broken = catalog.sound()
    for error in broken:
        print(f"a line of your own is not deployed: {error}", file=sys.stderr, flush=True)
    return list(found.values())


def _deployed(api: httpx.Client, wanted: dict[str, Any]) -> bool:
    found = api.get(f"/deployments/name/produce/{wanted['name']}")
    return found.status_code == 200 and found.json()["version"] == wanted["version"]


def _deploy(api: httpx.Client, file: dict[str, Any]) -> None:
    pool = api.post("/work_pools/", json={"name": POOL, "type": "process"})
    if pool.status_code != 409:
        pool.raise_for_status()
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE.name
        path.write_text(yaml.safe_dump(file, sort_keys=False))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run([*command, "--prefect-file", str(path)], cwd=ROOT, check=True)


def _await(api: httpx.Client, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if api.get("/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"Prefect at {api.base_url} does not answer")


def _let_in(home: Path, seconds: float = 120.0) -> None:
    """Name the model server's first key, which it makes when it first starts."""
    deadline = time.monotonic() + seconds
    while not (home / FIRST_KEY).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the model server has made no key: {home / FIRST_KEY} is not there")
        time.sleep(0.2)
    os.environ.setdefault("MODELMINT_API_KEY", (home / FIRST_KEY).read_text().strip())


def main() -> None:
    """Deploy, then turn into the worker."""
    deploy()
    _let_in(home())
    worker = ["worker", "start", "--pool", POOL, "--type", "process", "--with-healthcheck"]
    command = [sys.executable, "-m", "prefect", *worker, "--name", "laptop"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
