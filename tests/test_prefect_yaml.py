"""prefect.yaml: a real Prefect server takes every deployment and really schedules cron runs."""

import datetime
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Locator, Page, expect

from deployments.local.stack import PREFECT, stack
from flows.lines import form
from models import catalog
from tests import browser

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
    producing = [d for d in deployments() if d["entrypoint"].startswith("flows.lines.")]
    lines = list(catalog.lines())
    assert [d["entrypoint"] for d in producing] == [f"flows.lines.{name}" for name in lines]
    assert [d["parameters"]["line"] for d in producing] == lines


def scheduled() -> list[tuple[str, str]]:
    """Flow and deployment of whatever has a schedule."""
    flow_names = {
        "flows.replay.replay_sample": "replay-sample",
        "flows.monitor.monitor_lines": "monitor-lines",
    }
    return [
        (flow_names.get(d["entrypoint"], "produce"), d["name"])
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
    assert all(run["parameters"] == (found["parameters"] or {}) for run in runs)
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
    assert "How to train" in schema["properties"]["training"]["description"]


def test_a_replay_can_be_asked_for_stage_by_stage(server: httpx.Client) -> None:
    form = server.get("/deployments/name/replay/replay").json()["parameter_openapi_schema"]
    stage = next(kind for kind in form["properties"]["stage"]["anyOf"] if "enum" in kind)
    assert stage["enum"] == ["clean", "train", "evaluate", "compress"]
    assert form["properties"]["from_raw"]["type"] == "boolean"
    assert set(form["required"]) == {"line", "version"}


def test_scoring_and_monitoring_are_typed_forms(server: httpx.Client) -> None:
    form = server.get("/deployments/name/score/score").json()["parameter_openapi_schema"]
    assert set(form["required"]) == {"line", "prefix"}
    assert "the champion" in form["properties"]["version"]["description"]
    form = server.get("/deployments/name/monitor/monitor").json()["parameter_openapi_schema"]
    rate = form["definitions"]["Search"]["properties"]["false_alarms"]
    assert (rate["exclusiveMinimum"], rate["exclusiveMaximum"]) == (0, 0.5)
    assert "finds drift where there is none" in rate["description"]


@pytest.mark.parametrize("event", ["data.arrived", "data.drifted"])
def test_an_event_starts_a_run_of_its_line(server: httpx.Client, event: str) -> None:
    line = f"any-{event[5:]}"
    told = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": f"modelmint.line.{line}"},
        "payload": {"line": line},
    }
    server.post("/events", json=[told]).raise_for_status()
    deployment = server.get("/deployments/name/produce/arrivals").json()["id"]
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    for _ in range(120):
        runs = server.post("/flow_runs/filter", json=wanted).json()
        if started := [run for run in runs if run["parameters"] == {"line": line}]:
            break
        time.sleep(0.5)
    assert len(started) == 1


def test_the_server_refuses_a_parameter_out_of_bounds(server: httpx.Client) -> None:
    found = server.get("/deployments/name/produce/digits").json()
    answer = server.post(
        f"/deployments/{found['id']}/create_flow_run",
        json={"parameters": {"training": {"epochs": 0}}},
    )
    assert answer.status_code in (409, 422)
    assert "epochs" in answer.text


@pytest.fixture
def ui(server: httpx.Client) -> Iterator[Page]:
    """Prefect's UI in a browser."""
    with browser.page(str(server.base_url).removesuffix("/api/")) as page:
        yield page


def custom_run(ui: Page, server: httpx.Client, name: str) -> str:
    """Open the form of a custom run with the training's fields; the deployment's id."""
    found: str = server.get(f"/deployments/name/produce/{name}").json()["id"]
    ui.goto(f"/deployments/deployment/{found}/run")
    ui.get_by_role("button", name="Training", exact=True).click()
    return found


def field(ui: Page, label: str) -> Locator:
    """The innermost field of that label."""
    having = ui.get_by_text(f"{label} (Optional)", exact=True)
    return ui.locator(".schema-form-property").filter(has=having).last


def test_a_click_starts_a_run_with_the_lines_settings_but_one(
    ui: Page, server: httpx.Client
) -> None:
    deployment = custom_run(ui, server, "digits")
    epochs = field(ui, "Epochs").locator("input")
    expect(epochs).to_have_value("12")
    expect(field(ui, "Epochs")).to_contain_text("How often every training row is seen")
    epochs.fill("3")
    ui.get_by_role("button", name="adamw").focus()
    ui.keyboard.press("ArrowDown")
    ui.get_by_role("option", name="sgd").click()
    browser.picture(ui, "prefect-custom-run")
    with ui.expect_response(lambda r: r.url.endswith("/create_flow_run")) as answered:
        ui.get_by_role("button", name="Submit").click()
    assert answered.value.status == 201
    run = server.get(f"/flow_runs/{answered.value.json()['id']}").json()
    assert run["deployment_id"] == deployment
    training = catalog.find("digits").training
    optimizer_wanted = training.optimizer.model_copy(update={"name": "sgd"})
    wanted = training.model_copy(update={"epochs": 3, "optimizer": optimizer_wanted})
    given = run["parameters"]["training"]
    assert form(training)(**given).model_dump() == form(wanted)().model_dump()


def test_a_value_out_of_bounds_is_refused_in_words(ui: Page, server: httpx.Client) -> None:
    custom_run(ui, server, "flights")
    field(ui, "Epochs").locator("input").fill("0")
    with ui.expect_response(lambda r: r.url.endswith("/create_flow_run")) as answered:
        ui.get_by_role("button", name="Submit").click()
    assert answered.value.status == 409
    refusal = ui.get_by_text("'training.epochs'. Failure reason: 0 is less than the minimum of 1")
    expect(refusal.first).to_be_visible()


def test_a_schedule_can_be_paused(ui: Page, server: httpx.Client) -> None:
    found = server.get("/deployments/name/produce/fashion").json()
    ui.goto(f"/deployments/deployment/{found['id']}")
    switch = ui.locator(".deployment-schedule-card, .deployment-schedules").get_by_role("switch")
    with ui.expect_response(lambda r: r.request.method == "PATCH"):
        switch.first.click()
    [schedule] = server.get(f"/deployments/{found['id']}").json()["schedules"]
    assert not schedule["active"]


def test_a_schedule_can_be_edited(ui: Page, server: httpx.Client) -> None:
    found = server.get("/deployments/name/produce/speech").json()
    [before] = found["schedules"]
    ui.goto(f"/deployments/deployment/{found['id']}")
    ui.locator(".deployment-schedule__menu").get_by_role("button").click()
    ui.get_by_text("Edit", exact=True).click()
    cron = ui.locator(".cron-schedule-form__row input[type=text]")
    expect(cron).to_have_value("0 1 * * 6")
    cron.fill("15 2 * * 5")
    with ui.expect_response(lambda r: r.request.method == "PATCH"):
        ui.get_by_role("button", name="Save").click()
    [after] = server.get(f"/deployments/{found['id']}").json()["schedules"]
    assert after["schedule"] == {**before["schedule"], "cron": "15 2 * * 5"}
    assert (after["id"], after["slug"], after["active"]) == (before["id"], "weekly", True)
