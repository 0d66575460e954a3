"""prefect.yaml: a real Prefect server takes every deployment and really schedules cron runs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.local.stack import PREFECT, stack
from models import catalog

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prefect server that has been given prefect.yaml."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("PREFECT_"):
            del os.environ[name]
    os.environ["MODELMINT_HOME"] = str(tmp_path_factory.mktemp("home"))
    with stack(PREFECT) as addresses:
        prefect = [sys.executable, "-m", "prefect"]
        for words in (
            ["work-pool", "create", "modelmint", "--type", "process"],
            ["--no-prompt", "deploy", "--all"],
        ):
            done = subprocess.run(
                [*prefect, *words], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with httpx.Client(base_url=addresses[PREFECT], timeout=30) as client:
            yield client
    os.environ.clear()
    os.environ.update(before)


def deployments() -> list[dict[str, Any]]:
    found = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert isinstance(found, list)
    return found


def test_every_shipped_line_has_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELMINT_LINES", raising=False)
    producing = [
        d
        for d in deployments()
        if d["entrypoint"] == "flows.produce.produce" and d["name"] != "arrivals"
    ]
    assert [d["parameters"]["line"] for d in producing] == list(catalog.lines())


def scheduled() -> list[tuple[str, str]]:
    """Flow and deployment of whatever has a schedule."""
    flow_names = {"produce": "produce", "replay_sample": "replay-sample"}
    return [
        (flow_names[d["entrypoint"].rpartition(".")[2]], d["name"])
        for d in deployments()
        if "schedules" in d
    ]


@pytest.mark.parametrize(("flow", "name"), scheduled())
def test_cron_runs_are_really_scheduled(server: httpx.Client, flow: str, name: str) -> None:
    found = server.get(f"/deployments/name/{flow}/{name}").json()
    [schedule] = found["schedules"]
    assert schedule["active"]
    wanted = {"deployments": {"id": {"any_": [found["id"]]}}}
    # The scheduler service looks about once a minute; nothing tells when it has.
    for _ in range(180):
        runs = server.post("/flow_runs/filter", json=wanted).json()
        if runs:
            break
        time.sleep(1)
    assert {run["state"]["name"] for run in runs} == {"Scheduled"}
    assert all(run["parameters"] == found["parameters"] for run in runs)
    assert {run["work_pool_name"] for run in runs} == {"modelmint"}


def test_parameters_are_a_typed_form(server: httpx.Client) -> None:
    schema = server.get("/deployments/name/produce/digits").json()["parameter_openapi_schema"]
    training = schema["definitions"]["Training"]["properties"]
    assert training["epochs"]["minimum"] == 1
    assert training["epochs"]["maximum"] == 10_000
    assert training["profile"]["enum"] == ["fast", "portable"]
    assert (
        "Peak learning rate"
        in schema["definitions"]["Optimizer"]["properties"]["lr"]["description"]
    )
    assert "Name of the model line" in schema["properties"]["line"]["description"]


def test_a_replay_can_be_asked_for_stage_by_stage(server: httpx.Client) -> None:
    form = server.get("/deployments/name/replay/replay").json()["parameter_openapi_schema"]
    stage = next(kind for kind in form["properties"]["stage"]["anyOf"] if "enum" in kind)
    assert stage["enum"] == ["clean", "train", "evaluate", "compress"]
    assert form["properties"]["from_raw"]["type"] == "boolean"
    assert set(form["required"]) == {"line", "version"}


def test_the_server_refuses_a_parameter_out_of_bounds(server: httpx.Client) -> None:
    found = server.get("/deployments/name/produce/digits").json()
    answer = server.post(
        f"/deployments/{found['id']}/create_flow_run",
        json={"parameters": {"line": "digits", "training": {"epochs": 0}}},
    )
    assert answer.status_code in (409, 422)
    assert "epochs" in answer.text
