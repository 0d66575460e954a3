"""A whole stack brought up by the command line, for tests that use it as a person does."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import boto3
import httpx
import psutil

from deployments.local import store
from deployments.local.processes import MARK
from tests.conftest import ROOT


class Home:
    """One home, used by commands that are processes of their own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        ours = ("AWS_", "DASK_", "MLFLOW_", "MODELMINT_", "PREFECT_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        lines = str(ROOT / "tests/lines")
        self.environment = kept | {"MODELMINT_HOME": str(folder), "MODELMINT_LINES": lines}
        self.environment |= settings

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "modelmint", *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out[-1000:] + err[-3000:]
        return out

    def up(self) -> dict[str, dict[str, Any]]:
        return self.named(self.run("up", "--detach", "--json"))

    def named(self, out: str) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads(out)["services"]}

    def processes(self) -> list[psutil.Process]:
        """Every living process of the home's services."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK, "").startswith(str(self.folder))
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def put(self, prefix: str, objects: dict[str, bytes]) -> None:
        """Put objects with an S3 client of our own."""
        client = self._s3()
        for name, content in objects.items():
            client.put_object(Bucket="modelmint", Key=prefix + name, Body=content)

    def get(self, key: str) -> bytes:
        """An object of the bucket."""
        content: bytes = self._s3().get_object(Bucket="modelmint", Key=key)["Body"].read()
        return content

    def keys(self, prefix: str) -> list[str]:
        """The first thousand objects below a prefix."""
        found = self._s3().list_objects_v2(Bucket="modelmint", Prefix=prefix)
        return [one["Key"] for one in found.get("Contents", [])]

    def _s3(self) -> Any:
        running = store.store(self.folder).running()
        assert running is not None
        names = store.environment(self.folder, running)
        return boto3.session.Session().client(
            "s3",
            endpoint_url=names["AWS_ENDPOINT_URL"],
            aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
            region_name=names["AWS_REGION"],
        )

    def url(self, service: str) -> str:
        """Where a service that runs was started, whether or not it answers."""
        ports = json.loads((self.folder / service / "ports.json").read_text())
        return f"http://127.0.0.1:{ports['http']}"

    def answers(self, service: str, path: str) -> bool:
        """Whether a service answers there."""
        try:
            return httpx.get(self.url(service) + path, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def supervisor(self, call: str, service: str) -> None:
        """Have Supervisor stop or start one service."""
        ports = json.loads((self.folder / "supervisor" / "ports.json").read_text())
        secret = json.loads((self.folder / "supervisor" / "secret.json").read_text())
        url = f"http://modelmint:{secret}@127.0.0.1:{ports['http']}/RPC2"
        with ServerProxy(url) as proxy:
            getattr(proxy.supervisor, call)(service)

    def click(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment, `flow/name`, as the UI does; the run's id."""
        api = f"{self.url('prefect')}/api"
        found = httpx.get(f"{api}/deployments/name/{deployment}", timeout=60).json()
        asked = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
        made: list[str] = []

        def taken() -> bool:
            path = f"{api}/deployments/{found['id']}/create_flow_run"
            created = httpx.post(path, json=asked, timeout=60)
            if created.status_code == 503:
                # SQLite is busy: Prefect's own client asks again too.
                return False
            made.append(created.raise_for_status().json()["id"])
            return True

        until(taken)
        return made[0]

    def runs(self, line: str) -> list[dict[str, Any]]:
        """The productions of a line that Prefect knows and that are not for later."""
        wanted = {"flows": {"name": {"any_": ["produce"]}}}
        found = httpx.post(f"{self.url('prefect')}/api/flow_runs/filter", json=wanted, timeout=60)
        return [
            run
            for run in found.raise_for_status().json()
            if run["parameters"]["line"] == line and not run["auto_scheduled"]
        ]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name that Prefect knows."""
        wanted = {"filter": {"event": {"name": [name]}}, "limit": 50}
        found = httpx.post(f"{self.url('prefect')}/api/events/filter", json=wanted, timeout=60)
        return list(found.raise_for_status().json()["events"])

    def ended(self, line: str) -> list[str]:
        """The states of the line's runs; none may have failed."""
        states = [run["state"]["type"] for run in self.runs(line)]
        assert not {"FAILED", "CRASHED", "CANCELLED"} & set(states), states
        return states

    def state(self, run: str) -> str:
        """The type of a run's state."""
        found = httpx.get(f"{self.url('prefect')}/api/flow_runs/{run}", timeout=60)
        return str(found.json()["state"]["type"])

    def versions(self, line: str) -> list[dict[str, Any]]:
        """What `modelmint versions` lists, oldest first."""
        found: list[dict[str, Any]] = json.loads(self.run("versions", line, "--json"))["versions"]
        return sorted(found, key=lambda version: int(version["version"]))

    def predict(self, line: str, record: dict[str, Any]) -> httpx.Response:
        """What the served model answers for a record."""
        bearer = {"authorization": f"Bearer {(self.folder / 'api-key').read_text()}"}
        url = f"{self.url('model-server')}/v1/lines/{line}/predict"
        return httpx.post(url, json=record, headers=bearer, timeout=60)


def until(holds: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until it holds; what takes longer than that never will."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError("it never came to be")
