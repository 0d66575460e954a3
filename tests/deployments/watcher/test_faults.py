"""Whole stacks of which parts are killed or away: nothing is missed, nothing is done twice."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.deployments.stacks import Home, until
from tests.lines import diabetes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
AWAY = float(os.environ.get("FAULT_SECONDS", "300"))
LINE = "diabetes"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("faults"), MODELMINT_WATCH_SILENT="15")
    home.up()
    yield home
    home.run("down")
    assert home.processes() == []


def land(home: Home, name: str) -> None:
    """Land an object that no run has seen: the first half again, by another name."""
    [content] = dict(diabetes.load("first")).values()
    home.put(f"raw/{LINE}/", {f"{name}.csv": content})


def completed(home: Home) -> int:
    return sum(run["state"]["type"] == "COMPLETED" for run in home.runs(LINE))


def taken(home: Home) -> bool:
    """Whether the line's last run took all there is, and nothing goes on."""
    return {run["state"]["type"] for run in home.runs(LINE)} == {"COMPLETED"}


def clicked(home: Home, epochs: int) -> str:
    """Start a run with so many epochs; the run's id."""
    return home.click("produce/arrivals", line=LINE, training={"epochs": epochs})


def training(home: Home, run: str) -> bool:
    """Whether the run is past cleaning and not through."""
    wanted = {"flow_runs": {"id": {"any_": [run]}}}
    url = f"{home.url('prefect')}/api/task_runs/filter"
    tasks = httpx.post(url, json=wanted, timeout=60).json()
    # One that is just being made has no state yet.
    states = {t["name"].partition("-")[0]: t["state"]["type"] for t in tasks if t["state"]}
    return states.get("train") == "RUNNING"


def kill(home: Home, *services: str) -> None:
    """End every process of these services at once."""
    for process in home.processes():
        try:
            if any(process.environ()["MODELMINT_SERVICE"].endswith(f"/{s}") for s in services):
                process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def resumed(home: Home, run: str) -> int:
    states = httpx.get(
        f"{home.url('prefect')}/api/flow_run_states/", params={"flow_run_id": run}, timeout=60
    ).json()
    return sum(state["name"] == "Resumed" for state in states)


def test_a_killed_flow_goes_on_from_its_last_stage(home: Home) -> None:
    land(home, "first")
    until(lambda: completed(home) == 1)
    run = clicked(home, 400)
    until(lambda: training(home, run))
    flow = [p for p in home.processes() if p.environ().get("PREFECT__FLOW_RUN_ID") == run]
    assert flow
    for process in flow:
        process.kill()
    until(lambda: home.state(run) == "COMPLETED", seconds=400)
    assert resumed(home, run) == 1
    before = home.versions(LINE)
    # The same is now in the cache: it gives no further version.
    again = clicked(home, 400)
    until(lambda: home.state(again) == "COMPLETED", seconds=200)
    assert home.versions(LINE) == before


def test_a_run_whose_worker_died_too_goes_on(home: Home) -> None:
    run = clicked(home, 401)
    until(lambda: training(home, run))
    kill(home, "prefect-worker")
    until(lambda: home.state(run) == "COMPLETED", seconds=400)
    assert resumed(home, run) == 1


def test_data_that_lands_while_the_watcher_is_down_is_noticed(home: Home) -> None:
    before = completed(home)
    home.supervisor("stopProcess", "watcher")
    land(home, "unseen")
    home.supervisor("startProcess", "watcher")
    until(lambda: completed(home) == before + 1, seconds=400)
    assert taken(home)


def test_data_that_lands_while_prefect_is_down_is_noticed(home: Home) -> None:
    before = completed(home)
    home.supervisor("stopProcess", "prefect")
    land(home, "unheard")
    time.sleep(AWAY)
    home.supervisor("startProcess", "prefect")
    until(lambda: home.answers("prefect", "/api/health"), seconds=200)
    until(lambda: completed(home) == before + 1, seconds=400)
    assert taken(home)


def test_prefect_may_be_away_while_a_run_trains(home: Home) -> None:
    run = clicked(home, 404)
    until(lambda: training(home, run))
    home.supervisor("stopProcess", "prefect")
    time.sleep(AWAY)
    home.supervisor("startProcess", "prefect")
    until(lambda: home.answers("prefect", "/api/health"), seconds=200)
    until(lambda: home.state(run) == "COMPLETED", seconds=500)
    digests = [version["digest"] for version in home.versions(LINE)]
    assert len(digests) == len(set(digests))


def test_a_run_that_finds_no_model_server_deploys_once_there_is_one(home: Home) -> None:
    run = clicked(home, 405)
    until(lambda: training(home, run))
    home.supervisor("stopProcess", "model-server")
    until(lambda: home.state(run) == "FAILED", seconds=400)
    home.supervisor("startProcess", "model-server")
    until(lambda: home.state(run) == "COMPLETED", seconds=400)
    assert resumed(home, run) >= 1


def test_after_kill_of_everything_in_a_run_it_goes_on(home: Home) -> None:
    run = clicked(home, 402)
    until(lambda: training(home, run))
    for process in home.processes():
        process.kill()
    until(lambda: home.processes() == [])
    home.up()
    until(lambda: home.state(run) == "COMPLETED", seconds=500)
    assert resumed(home, run) >= 1
    versions = [version["digest"] for version in home.versions(LINE)]
    assert len(versions) == len(set(versions))


def test_a_store_that_dies_in_a_run_costs_nothing(home: Home) -> None:
    run = clicked(home, 403)
    until(lambda: training(home, run))
    kill(home, "store")
    until(lambda: home.state(run) == "COMPLETED", seconds=500)
    before = completed(home)
    land(home, "after")
    until(lambda: completed(home) == before + 1, seconds=400)


def test_a_dask_scheduler_that_dies_in_a_run_costs_nothing(home: Home) -> None:
    before = completed(home)
    land(home, "scheduled")
    until(lambda: completed(home) == before + 1, seconds=400)
    run = clicked(home, 406)
    until(lambda: training(home, run))
    kill(home, "dask-scheduler")
    until(lambda: home.state(run) == "COMPLETED", seconds=500)
    versions = [version["digest"] for version in home.versions(LINE)]
    assert len(versions) == len(set(versions))
