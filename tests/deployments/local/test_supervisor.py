"""The whole stack of one home, brought up once by the command line and shared by these tests."""

import datetime
import json
import re
import shlex
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xmlrpc.client import Fault

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from deployments.local import store
from deployments.local.ports import PAIR, Ports, free_ports, occupied
from deployments.local.prefect_worker import deployment
from deployments.local.rotation import LONGEST
from deployments.local.stack import ELSEWHERE
from deployments.local.supervisor import planned, status_of
from models import catalog
from tests import browser
from tests.conftest import ROOT
from tests.deployments.local.test_service import web
from tests.deployments.stacks import Home, until
from tests.lines import diabetes

pytestmark = pytest.mark.timeout(400)
NAMES = {
    *("store", "prefect", "mlflow", "dask-scheduler", "dask-worker-1", "prefect-worker"),
    *("model-server", "watcher"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    # Quiet long enough for what a busy machine puts one after another to be one change; and no
    # sweep, so that nothing but the store's webhook tells of new data.
    settings = {"MODELMINT_WATCH_QUIET": "5", "MODELMINT_WATCH_SWEEP": "86400"}
    home = Home(tmp_path_factory.mktemp("stack"), **settings)
    both = [home.start("up", "--detach", "--json") for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    # Two at once are one stack.
    first, second = (home.named(out) for out, _ in answers)
    assert {n: s["pid"] for n, s in first.items()} == {n: s["pid"] for n, s in second.items()}
    yield home
    home.run("down")
    assert home.processes() == []


def test_no_two_services_plan_the_same_port(tmp_path: Path) -> None:
    ports = free_ports(store.PORTS, paired=True)
    remembered = {"store": ports}
    # A port of the store, the pair of one, and a port that three remember.
    remembered |= {"prefect": {"http": ports["s3"]}, "watcher": {"http": ports["filer"] + PAIR}}
    alike = free_ports(["http"], paired=False)
    remembered |= dict.fromkeys(("supervisor", "mlflow", "dask-worker-1"), alike)
    for name, known in remembered.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "ports.json").write_text(json.dumps(known))
    found = planned(tmp_path)
    assert found["store"] == ports
    assert found["supervisor"] == alike
    numbers = [port for name in found if name != "store" for port in found[name].values()]
    numbers += occupied(ports, paired=True)
    assert len(set(numbers)) == len(numbers)
    assert planned(tmp_path) == found


def test_one_that_dies_while_it_is_asked_is_not_running(tmp_path: Path) -> None:
    service = replace(web(tmp_path), name="watcher")
    with service.use() as running:
        assert status_of(service).healthy

        def dies(_: Ports) -> str:
            process = psutil.Process(running.pid)
            process.kill()
            psutil.wait_procs([process], timeout=60)
            return "it does not answer"

        found = status_of(replace(service, missing=dies))
    assert (found.healthy, found.pid, found.problem) == (False, 0, "not running")


@pytest.mark.parametrize(
    "how", [pytest.param("Ctrl-C", marks=pytest.mark.slow), "Supervisor is killed"]
)
def test_an_up_in_the_foreground_that_ends_while_it_starts_leaves_nothing(
    tmp_path: Path, how: str
) -> None:
    # Before the tests that share a stack: two at once are much for a small machine.
    home = Home(tmp_path)
    # Without a log it never serves.
    (tmp_path / "mlflow/log").mkdir(parents=True)
    foreground = home.start("up", "--json")
    record = tmp_path / "supervisor/service.json"
    until(lambda: record.exists() and (tmp_path / "store/service.json").exists())
    if how == "Ctrl-C":
        foreground.send_signal(signal.SIGINT)
    else:
        psutil.Process(json.loads(record.read_text())["pid"]).kill()
    said = "".join(foreground.communicate(timeout=180))
    assert foreground.returncode == 1
    # Killed between two questions, or while it answered one.
    told = ["Aborted"] if how == "Ctrl-C" else ["nothing is up", "supervisor does not answer"]
    assert any(words in said for words in told), said
    assert home.processes() == []


def test_everything_serves_on_loopback(home: Home) -> None:
    found = home.named(home.run("status", "--json"))
    assert set(found) >= NAMES
    for one in found.values():
        assert one["healthy"], one
        assert one["memory_mb"] > 1
        assert one["url"].partition("//")[2].startswith("127.0.0.1:")
    for process in home.processes():
        for open_socket in process.net_connections("tcp"):
            # gRPC tells an IPv4 address as IPv6 does.
            ip = getattr(open_socket.laddr, "ip", "").removeprefix("::ffff:")
            assert open_socket.status != "LISTEN" or ip == "127.0.0.1"


def test_new_data_starts_one_run_and_the_same_again_none(home: Home) -> None:
    home.up()
    load = {half: dict(diabetes.load(half)) for half in diabetes.HALVES}
    home.put("raw/diabetes/", load["first"])
    # Of a line there is none of.
    home.put("raw/nobody/", {"a.csv": b"1"})
    until(lambda: home.ended("diabetes") == ["COMPLETED"])
    [version] = home.versions("diabetes")
    assert version["verdict"] == "promote"
    person = {"age": 0.04, "bmi": 0.06, "bp": 0.02, "s5": 0.02, "sex": "b"}
    answer = home.predict("diabetes", person)
    assert answer.status_code == 200
    assert answer.headers["modelmint-version"] == str(version["version"])
    # The same once more, then many at once, of which most are empty.
    home.put("raw/diabetes/", load["first"])
    home.put("raw/diabetes/", load["second"] | {f"{n}.csv": b"" for n in range(9)})
    until(lambda: home.ended("diabetes") == ["COMPLETED"] * 2)
    found = json.loads(home.get("arrivals/diabetes/taken.json"))
    assert found["objects"] == 11
    assert len(home.versions("diabetes")) == 2
    # What the run registered on the server is there for a command.
    again = json.loads(home.run("run", "diabetes", "--json"))
    assert again["digest"] == home.versions("diabetes")[-1]["digest"]
    assert all(stage["cached"] for stage in again["stages"])
    # What is empty is quarantined, and so is what repeats it.
    reasons = {refusal["reason"] for refusal in again["refused"]}
    assert "0.csv: the object is empty" in reasons
    assert len(reasons) == 9
    assert [run["name"] for run in home.runs("diabetes")] == ["produce diabetes"] * 3
    told = home.run("logs", "watcher", "--lines", "100")
    assert "raw/nobody/: data of an unknown line" in told


def test_a_run_shows_what_came_of_it_and_its_links_open(home: Home) -> None:
    services = home.up()
    api = services["prefect"]["url"]
    asked = {"artifacts": {"key": {"any_": ["diabetes-mlflow"]}}}
    found = httpx.post(f"{api}/api/artifacts/filter", json=asked)
    first = min(found.json(), key=lambda artifact: str(artifact["created"]))
    [link] = re.findall(r"\((http[^)]*)\)", first["data"])
    assert link.startswith(services["mlflow"]["url"])
    with browser.page(api) as ui:
        ui.goto(f"/runs/flow-run/{first['flow_run_id']}")
        ui.get_by_role("listitem").filter(has_text="Artifacts").click()
        shown = ("progress", "verdict", "compression", "compression-plot", "endpoint", "mlflow")
        for what in shown:
            expect(ui.get_by_text(f"diabetes-{what}", exact=True).last).to_be_visible()
        browser.picture(ui, "prefect-run")
        ui.get_by_text("diabetes-verdict", exact=True).last.click()
        expect(ui.get_by_role("heading", name="diabetes: promote")).to_be_visible()
        expect(ui.get_by_text("every floor holds").last).to_be_visible()
        ui.go_back()
        ui.get_by_role("listitem").filter(has_text="Artifacts").click()
        ui.get_by_text("diabetes-compression-plot", exact=True).last.click()
        image = ui.locator("img[src^='data:image/png']").last
        expect(image).to_be_visible()
        assert image.evaluate("image => image.naturalWidth") > 200
        ui.go_back()
        ui.get_by_role("listitem").filter(has_text="Artifacts").click()
        ui.get_by_text("diabetes-endpoint", exact=True).last.click()
        answers = ui.get_by_role("link", name="diabetes version 1: where it answers")
        expect(answers).to_have_attribute("href", f"{services['model-server']['url']}/")
        ui.goto(str(answers.get_attribute("href")))
        expect(ui).to_have_title("Modelmint")
        ui.goto(link)
        expect(ui.get_by_text("Registered models", exact=True)).to_be_visible()


@pytest.mark.slow
def test_a_click_is_a_run_with_changed_settings(home: Home) -> None:
    home.up()
    run = home.click("produce/arrivals", line="diabetes", training={"epochs": 20})
    until(lambda: home.state(run) == "COMPLETED")
    again = json.loads(home.run("run", "diabetes", "--set", "training.epochs=20", "--json"))
    assert again["digest"] == home.versions("diabetes")[-1]["digest"]
    assert all(stage["cached"] for stage in again["stages"])


@pytest.mark.slow
def test_click_event_and_the_lines_own_deployment_at_once_go_one_at_a_time(home: Home) -> None:
    api = home.up()["prefect"]["url"] + "/api"

    before = {run["id"] for run in home.runs("diabetes")}
    told = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "event": "data.arrived",
        "resource": {"prefect.resource.id": "modelmint.line.diabetes"},
        "payload": {"line": "diabetes"},
    }
    # The first goes on for long enough that the others come meanwhile.
    clicked = home.click("produce/arrivals", line="diabetes", training={"epochs": 300})
    httpx.post(f"{api}/events", json=[told]).raise_for_status()
    scheduled = home.click("produce/diabetes", line="diabetes", training={"epochs": 21})
    until(lambda: home.ended("diabetes") == ["COMPLETED"] * (len(before) + 3))
    ours = {run["id"] for run in home.runs("diabetes")} - before
    assert ours > {clicked, scheduled}

    wanted = {"flow_runs": {"id": {"any_": sorted(ours)}}}
    stages = httpx.post(f"{api}/task_runs/filter", json=wanted).json()
    spans = sorted(
        (
            min(stage["start_time"] for stage in stages if stage["flow_run_id"] == run),
            max(stage["end_time"] for stage in stages if stage["flow_run_id"] == run),
        )
        for run in ours
    )
    for (_, ended), (began, _) in pairwise(spans):
        assert ended <= began
    # They were there at once.
    asked = {"logs": {"flow_run_id": {"any_": sorted(ours)}}}
    logs = httpx.post(f"{api}/logs/filter", json=asked).json()
    waits = {log["flow_run_id"] for log in logs if "waiting for run" in log["message"]}
    assert len(waits) == 2


def test_a_line_of_ones_own_has_a_form_with_its_own_values(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = home.up()["prefect"]["url"] + "/api"
    deployed = httpx.get(f"{api}/deployments/name/produce/diabetes").json()
    assert deployed["entrypoint"] == "flows.lines.diabetes"
    monkeypatch.setenv(catalog.SETTING, home.environment[catalog.SETTING])
    wanted = deployment(catalog.find("diabetes"))
    # Once it is another, the line was changed.
    assert deployed["version"] == wanted["version"]
    assert deployed["description"] == wanted["description"]
    settings = deployed["parameter_openapi_schema"]["definitions"]["Training"]["properties"]
    assert settings["epochs"]["default"] == 30
    assert settings["batch_size"]["default"] == 32


@pytest.mark.slow
def test_whatever_dies_comes_back_at_its_address(home: Home) -> None:
    before = home.up()
    for one in before.values():
        psutil.Process(one["pid"]).kill()

    def back() -> bool:
        out, _ = home.start("status", "--json").communicate(timeout=60)
        now = home.named(out)
        return all(s["healthy"] and s["pid"] != before[n]["pid"] for n, s in now.items())

    until(back)
    now = home.named(home.run("status", "--json"))
    assert {n: s["url"] for n, s in now.items()} == {n: s["url"] for n, s in before.items()}


def test_why_a_service_does_not_start_is_in_its_log(home: Home) -> None:
    port = int(home.up()["mlflow"]["url"].rpartition(":")[2])
    home.supervisor("stopProcess", "mlflow")
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(Fault, match="ABNORMAL_TERMINATION|SPAWN_ERROR"):
            home.supervisor("startProcess", "mlflow")
        said = home.run("logs", "mlflow", "--lines", "4")
    assert f"another program listens on port {port}" in said
    assert "`modelmint down`, then `modelmint up`" in said
    # Supervisor goes on trying.
    until(lambda: home.answers("mlflow", "/health"))


def test_a_log_that_has_grown_long_begins_anew(home: Home) -> None:
    home.up()
    log = home.folder / "watcher" / "log"
    with log.open("ab") as file:
        file.write(b"x" * (LONGEST + 1))
    until(lambda: log.stat().st_size < LONGEST)
    assert log.with_suffix(".1").stat().st_size > LONGEST


@pytest.mark.slow
def test_ctrl_c_ends_the_stack_of_an_up_in_the_foreground(home: Home) -> None:
    foreground = home.start("up", "--json")
    assert foreground.stdout is not None
    assert foreground.stdout.readline()
    foreground.send_signal(signal.SIGINT)
    foreground.communicate(timeout=120)
    assert foreground.returncode == 0
    assert home.processes() == []


@pytest.mark.slow
def test_after_kill_of_everything_all_of_it_is_there_again(home: Home) -> None:
    before = home.up()
    versions = home.run("versions", "diabetes", "--json")
    for process in home.processes():
        process.kill()
    until(lambda: home.processes() == [])
    assert not any(s["healthy"] for s in home.named(home.run("status", "--json", code=1)).values())
    port = int(before["mlflow"]["url"].rpartition(":")[2])
    with ExitStack() as rivals:
        # A stranger has taken a port meanwhile.
        rivals.enter_context(socket.create_server(("127.0.0.1", port)))
        after = home.up()
    assert after["mlflow"]["url"] != before["mlflow"]["url"]
    assert after["store"]["url"] == before["store"]["url"]
    assert home.run("versions", "diabetes", "--json") == versions
    bearer = {"authorization": f"Bearer {(home.folder / 'api-key').read_text()}"}
    found = httpx.get(after["model-server"]["url"] + "/v2/models/diabetes", headers=bearer)
    assert found.status_code == 200, found.text


def test_a_killed_supervisor_leaves_a_stack_that_the_next_takes_over(home: Home) -> None:
    before = home.up()
    record = json.loads((home.folder / "supervisor/service.json").read_text())
    psutil.Process(record["pid"]).kill()
    assert all(s["healthy"] for s in home.named(home.run("status", "--json")).values())
    after = home.up()
    assert {n: s["pid"] for n, s in after.items()} == {n: s["pid"] for n, s in before.items()}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_up_refuses_to_pass_over_a_service_elsewhere(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path, **{name: "http://127.0.0.1:9"})
    process = home.start("up", "--detach")
    assert f"{name} is set: unset it" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert home.processes() == []


def documented() -> list[list[str]]:
    """The commands of the README's section, in order; the last one is `down`."""
    section = (ROOT / "README.md").read_text().partition("## Let it run")[2].partition("\n## ")[0]
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


def test_the_commands_of_the_readme_end_with_no_process(home: Home) -> None:
    versions = home.run("versions", "diabetes", "--json")
    assert [words[0] for words in documented()] == ["up", "status", "logs", "restart", "down"]
    foreground = home.start("up", "--json")
    assert foreground.stdout is not None
    assert set(home.named(foreground.stdout.readline())) >= NAMES
    for words in documented():
        home.run(*words)
    assert home.processes() == []
    assert "ended elsewhere" in foreground.communicate(timeout=60)[1]
    assert foreground.returncode == 0
    # Without `up` a command brings what it needs, and takes it away again.
    known = json.loads(versions)["versions"][0]["digest"]
    assert json.loads(home.run("versions", "diabetes", "--json"))["versions"][0]["digest"] == known
    assert home.processes() == []
    home.run("down")


def test_logs_and_restart_name_a_service_that_is_not_there(home: Home) -> None:
    assert "is called 'nothing'" in home.start("logs", "nothing").communicate(timeout=60)[1]
    assert "is called 'nothing'" in home.start("restart", "nothing").communicate(timeout=60)[1]
