"""`modelmint` in a process of its own, of this checkout or a copy of it; what Prefect has of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT

PACKAGES = ("models", "tasks", "flows", "deployments")


def command(
    *words: str, root: Path = ROOT, seconds: float = 300, alone: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`modelmint` of a checkout in a process of its own, against the same services.

    `alone` is in a process group that can be killed.
    """
    return subprocess.run(
        [sys.executable, "-m", "modelmint", *words, "--json"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        start_new_session=alone,
    )


def checkout(folder: Path) -> Path:
    """A copy of the code, as another release would be."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "modelmint.py", folder)
    return folder


def in_prefect(api: str, line: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the last replay of the version, and the artifact that its run made."""
    wanted: dict[str, Any] = {
        "flow_runs": {"name": {"any_": [f"replay {line} {number}"]}},
        "sort": "START_TIME_DESC",
    }
    run = httpx.post(f"{api}/flow_runs/filter", json=wanted).json()[0]
    asked = {
        "artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": [f"{line}-replay"]}}
    }
    [artifact] = httpx.post(f"{api}/artifacts/filter", json=asked).json()
    return run["state"], {**artifact, "data": json.loads(artifact["data"])}
