"""prefect.yaml: a real Prefect server takes every deployment and really schedules cron runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml

from deployments.local.stack import PREFECT, stack
from models import catalog

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")
def test_custom_run_is_a_form_with_help_and_drop_downs(
    server: httpx.Client, tmp_path: Path
) -> None:
    found = server.get("/deployments/name/produce/arrivals").json()
    filled = json.dumps({"line": "digits", "training": {"epochs": 3}})
    site = str(server.base_url).partition("/api")[0]
    page = f"{site}/deployments/deployment/{found['id']}/run?parameters={quote(filled)}"
    document = browser(tmp_path, page, "--dump-dom")
    shown = [text.strip() for text in re.sub("<[^>]*>", "\n", document).splitlines()]
    for text in ("Name of the model line.", "Peak learning rate.", "Epochs (Optional)", "Submit"):
        assert text in shown, text
    for choices in (["sgd", "adam", "adamw"], ["fast", "portable"], ["auto", "cpu", "cuda"]):
        assert all(choice in shown for choice in choices)
    if folder := os.environ.get("MODELMINT_SCREENSHOTS"):
        picture = Path(folder).resolve() / "custom-run.png"
        browser(tmp_path, page, f"--screenshot={picture}", "--window-size=1100,1500")


def browser(profile: Path, page: str, *options: str) -> str:
    """What headless Chromium prints once the page's scripts have come to rest."""
    headless = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    command = [str(CHROMIUM), *headless, f"--user-data-dir={profile}", "--hide-scrollbars"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=30000", *options, page],
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    return done.stdout


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


def test_data_that_arrived_is_one_run_of_its_line(server: httpx.Client) -> None:
    told = {
        "id": str(uuid.uuid4()),
        "event": "data.arrived",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": "modelmint.line.flights"},
        "payload": {"line": "flights"},
    }
    last = {**told, "id": str(uuid.uuid4()), "payload": {"line": "fashion"}}
    for event in (told, told, last):
        server.post("/events", json=[event]).raise_for_status()
    deployment = server.get("/deployments/name/produce/arrivals").json()
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    for _ in range(150):
        runs = server.post("/flow_runs/filter", json=wanted).json()
        lines = sorted(run["parameters"]["line"] for run in runs)
        if "fashion" in lines:
            break
        time.sleep(0.2)
    assert lines == ["fashion", "flights"]
    assert {run["created_by"]["display_value"] for run in runs} == {"data-arrived"}
