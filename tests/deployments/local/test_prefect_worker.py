"""What `up` deploys: forms follow the code, and what people edited stays."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.local.forms import schema_of
from deployments.local.prefect_worker import deploy
from deployments.local.stack import HOME_SETTING, PREFECT, stack
from models import catalog
from tests.conftest import ROOT, environment

pytestmark = pytest.mark.timeout(300)
DEPLOY = "from deployments.local.prefect_worker import deploy; deploy()"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prefect server that knows nothing yet; one file of a line cannot be used."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.py").write_text("line = ")
    settings = {
        HOME_SETTING: str(tmp_path / "home"),
        catalog.SETTING: os.pathsep.join([str(ROOT / "tests" / "lines"), str(tmp_path / "own")]),
    }
    with (
        environment(**settings),
        stack(PREFECT) as addresses,
        httpx.Client(base_url=addresses[PREFECT], timeout=30) as client,
    ):
        yield client


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A release with another bound and another default, and the same prefect.yaml."""
    folder = tmp_path / "earlier"
    for package in ("models", "tasks", "flows", "deployments"):
        ignored = shutil.ignore_patterns("*.pyc")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copy(ROOT / "prefect.yaml", folder)
    for name, before, after in (
        (
            "models/spec.py",
            "epochs: int = Field(10, ge=1, le=10_000)",
            "epochs: int = Field(10, le=9_999)",
        ),
        ("models/lines/digits.py", "epochs=12", "epochs=11"),
    ):
        text = (folder / name).read_text()
        assert text.count(before) == 1
        (folder / name).write_text(text.replace(before, after))
    return folder


def epochs(found: dict[str, Any]) -> tuple[int, int]:
    """The default and the bound that the form has."""
    field = found["parameter_openapi_schema"]["definitions"]["Training"]["properties"]["epochs"]
    return field["default"], field["maximum"]


@pytest.mark.slow
def test_after_an_upgrade_forms_are_new_and_edited_schedules_stay(
    api: httpx.Client, earlier: Path
) -> None:
    there = {**os.environ, "PYTHONPATH": str(earlier)}
    subprocess.run([sys.executable, "-c", DEPLOY], cwd=earlier, env=there, check=True)

    def named(name: str) -> dict[str, Any]:
        found: dict[str, Any] = api.get(f"/deployments/name/produce/{name}").json()
        return found

    digits, speech, own = (named(name) for name in ("digits", "speech", "diabetes"))
    assert epochs(digits) == (11, 9_999)
    assert epochs(own)[1] == 9_999
    edited = {"schedule": {"cron": "30 4 * * *", "timezone": "Europe/Berlin"}}
    [schedule] = digits["schedules"]
    where = f"/deployments/{digits['id']}/schedules/{schedule['id']}"
    api.patch(where, json=edited).raise_for_status()
    [schedule] = speech["schedules"]
    where = f"/deployments/{speech['id']}/schedules/{schedule['id']}"
    api.patch(where, json={"active": False}).raise_for_status()
    added = [{"schedule": {"interval": 86400}, "active": True}]
    api.post(f"/deployments/{own['id']}/schedules", json=added).raise_for_status()
    before = {name: named(name)["schedules"] for name in ("digits", "speech", "diabetes")}
    assert before["digits"][0]["schedule"]["cron"] == "30 4 * * *"
    assert not before["speech"][0]["active"]
    assert len(before["diabetes"]) == 1

    deploy()
    assert epochs(named("digits")) == (12, 10_000)
    assert epochs(named("diabetes")) == (30, 10_000)
    assert {name: named(name)["schedules"] for name in before} == before
    assert named("digits")["id"] == digits["id"]
    # All of them are what `prefect deploy` would have made of this code, which runs.
    every = api.post("/deployments/filter", json={}).json()
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {one["name"] for one in every} >= {one["name"] for one in shipped}
    for one in every:
        assert one["parameter_openapi_schema"] == schema_of(one["entrypoint"])
        [step] = one["pull_steps"]
        assert list(step.values()) == [{"directory": str(ROOT)}]

    updated = {one["id"]: one["updated"] for one in every}
    deploy()
    again = api.post("/deployments/filter", json={}).json()
    assert {one["id"]: one["updated"] for one in again} == updated
