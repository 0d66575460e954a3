"""The whole chain on the services of production gives the version a laptop gives, bit for bit.

Nothing but the environment differs: PostgreSQL and Redis below Prefect, PostgreSQL below MLflow,
Dask over TLS. `make production` runs it; about two minutes on two cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import sqlalchemy

from deployments.kubernetes.follow import follow
from deployments.local.ports import HOST, free_ports, unanswered
from tests.conftest import ROOT, environment
from tests.production.conftest import running

pytestmark = pytest.mark.slow
LINE = "diabetes"


def modelmint(variables: dict[str, str], *words: str) -> dict[str, Any]:
    """The JSON answer of a command that finds its services in these variables alone."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "modelmint", *words, "--json"],
        env=kept | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def minted(production: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `modelmint run` says on the production services."""
    from tasks.store import store

    with environment(MODELMINT_BUCKET=production["MODELMINT_BUCKET"]):
        store().create_bucket()
    folder = tmp_path_factory.mktemp("production-home")
    keys = str(folder / "keys")
    home = {"MODELMINT_HOME": str(folder), "MODELMINT_KEYS": keys}
    modelmint(production | home, "land", LINE)
    return modelmint(production | home, "run", LINE) | {"keys": keys}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it says on a laptop: another store, SQLite below Prefect and MLflow, local Dask."""
    named = ("AWS_", "MODELMINT_", "DASK_")
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(named)}
    variables = {
        "MODELMINT_HOME": str(tmp_path_factory.mktemp("laptop-home")),
        "MODELMINT_LINES": str(ROOT / "tests" / "lines"),
    }
    try:
        modelmint(variables, "land", LINE)
        return modelmint(variables, "run", LINE)
    finally:
        os.environ.update(before)


def test_the_version_is_the_one_of_a_laptop(minted: dict[str, Any], laptop: dict[str, Any]) -> None:
    digests = [{s["name"]: s["digest"] for s in run["stages"]} for run in (minted, laptop)]
    assert digests[0] == digests[1]
    assert not any(stage["cached"] for stage in [*minted["stages"], *laptop["stages"]])
    assert minted["digest"] == laptop["digest"]
    assert minted["verdict"] == "promote"


def test_prefect_and_mlflow_keep_their_state_in_postgres(
    minted: dict[str, Any], production: dict[str, str]
) -> None:
    del minted
    asked = {
        "prefect": "select count(*) from flow_run where state_type = 'COMPLETED'",
        "mlflow": "select count(*) from model_versions where name = 'diabetes'",
    }
    for name, query in asked.items():
        engine = sqlalchemy.create_engine(f"{production['TEST_DATABASE']}/{name}")
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text(query)).scalar_one() == 1, name
        engine.dispose()


def test_events_go_through_redis(minted: dict[str, Any], production: dict[str, str]) -> None:
    del minted
    with redis.Redis.from_url(f"{production['TEST_EVENTS']}/0") as client:
        assert client.xlen("events") > 0


def test_dask_refuses_who_does_not_encrypt(production: dict[str, str]) -> None:
    from distributed import Client

    plain = production["DASK_SCHEDULER_ADDRESS"].replace("tls://", "tcp://")
    with pytest.raises(OSError, match="Timed out|timed out|closed"):
        Client(plain, timeout=3)


def test_a_new_replica_follows_the_champions(
    minted: dict[str, Any], production: dict[str, str], tmp_path: Path
) -> None:
    port = free_ports(["http"], paired=False)["http"]
    key = f"mm_{'0' * 12}_{'k' * 43}"
    (tmp_path / "key").write_text(key)
    server = [sys.executable, "-m", "deployments.serving", "--repository", str(tmp_path / "served")]
    server += ["--first-key", str(tmp_path / "key")]
    named = {
        "MODELMINT_BUCKET": production["MODELMINT_BUCKET"],
        "MODELMINT_LINES": production["MODELMINT_LINES"],
        "MODELMINT_KEYS": minted["keys"],
    }

    def ready() -> bool:
        return unanswered(port, "/v2/health/ready", {200}) is None

    url = f"http://{HOST}:{port}"
    with running(tmp_path / "log", [*server, "--port", str(port)], ready, **named):
        bucket = production["MODELMINT_BUCKET"]
        with environment(MODELMINT_BUCKET=bucket, MODELMINT_API_KEY=key):
            assert follow(url) == [LINE]
            assert follow(url) == []
        answer = httpx.get(f"{url}/v2/models/{LINE}", headers={"authorization": f"Bearer {key}"})
        assert answer.headers["modelmint-digest"] == minted["digest"]
