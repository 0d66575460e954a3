"""A stack in which callers begin to send something else: it is found, told, and starts a run.

What they send has no labels, so the run ends with the version there is until such data lands.
"""

from collections.abc import Iterator

import httpx
import polars as pl
import pytest

from tests.deployments.stacks import Home, until
from tests.lines import diabetes

pytestmark = pytest.mark.slow
LINE = "diabetes"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("drift"), MODELMINT_CAPTURE=f"{LINE}=1")
    home.up()
    yield home
    home.run("down")


def patients(moved: float) -> bytes:
    """Patients like the known ones, but for their body mass index."""
    [content] = dict(diabetes.load("second")).values()
    table = diabetes.clean(pl.read_csv(content).lazy(), {}).collect()
    return table.select("age", "bp", "s5", "sex", pl.col("bmi") + moved).write_csv().encode()


def sent(home: Home, content: bytes) -> None:
    bearer = {"authorization": f"Bearer {(home.folder / 'api-key').read_text()}"}
    url = f"{home.url('model-server')}/v1/lines/{LINE}/predict"
    headers = {"content-type": "text/csv", **bearer}
    answer = httpx.post(url, content=content, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def monitored(home: Home) -> None:
    """Have the deployment `monitor` look, as its schedule or a click would."""
    run = home.click("monitor/monitor", line=LINE, search={"minimum_rows": 100})
    until(lambda: home.state(run) == "COMPLETED", seconds=300)


def test_what_callers_send_drifts_and_a_run_finds_nothing_new_to_train_on(home: Home) -> None:
    home.put(f"raw/{LINE}/", dict(diabetes.load("first")))
    until(lambda: home.ended(LINE) == ["COMPLETED"], seconds=400)
    made = [(one["version"], one["digest"]) for one in home.versions(LINE)]
    assert len(made) == 1
    sent(home, patients(0.0))
    until(lambda: bool(home.keys(f"captured/{LINE}/")))
    monitored(home)
    # Nothing follows from inputs like those of the training, and what follows would be there soon:
    # the same inputs moved are told of, and theirs is the only run.
    sent(home, patients(0.2))
    until(lambda: len(home.keys(f"captured/{LINE}/")) > 1)
    monitored(home)
    until(lambda: len(home.runs(LINE)) == 2)
    until(lambda: home.ended(LINE) == ["COMPLETED"] * 2, seconds=400)
    [event] = home.events("data.drifted")
    assert "bmi" in event["payload"]["drifted"]
    assert [(one["version"], one["digest"]) for one in home.versions(LINE)] == made
