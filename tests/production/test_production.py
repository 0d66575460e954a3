"""The whole chain on the services of production gives the version a laptop gives, bit for bit.

Nothing but the environment differs: PostgreSQL and Redis below Prefect, PostgreSQL below MLflow,
Dask over TLS. And new data starts a run there as it does on a laptop: watcher, automation, worker.
`make production` runs it; about four minutes on two cores.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
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
    modelmint(production | home, "land", LINE, "--slice", "first")
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
        modelmint(variables, "land", LINE, "--slice", "first")
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


@pytest.fixture(scope="module")
def server(
    minted: dict[str, Any], production: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The variables by which a model server is deployed to; it trusts who signed `minted`."""
    folder = tmp_path_factory.mktemp("replica")
    port = free_ports(["http"], paired=False)["http"]
    key = f"mm_{'0' * 12}_{'k' * 43}"
    (folder / "key").write_text(key)
    command = [sys.executable, "-m", "deployments.serving", "--repository", str(folder / "served")]
    command += ["--first-key", str(folder / "key"), "--port", str(port)]
    named = {
        "MODELMINT_BUCKET": production["MODELMINT_BUCKET"],
        "MODELMINT_LINES": production["MODELMINT_LINES"],
        "MODELMINT_KEYS": minted["keys"],
    }

    def ready() -> bool:
        return unanswered(port, "/v2/health/ready", {200}) is None

    with running(folder / "log", command, ready, **named):
        yield {"MODELMINT_ENDPOINT": f"http://{HOST}:{port}", "MODELMINT_API_KEY": key}


def served(server: dict[str, str]) -> httpx.Response:
    """What the server says of the line's champion."""
    bearer = {"authorization": f"Bearer {server['MODELMINT_API_KEY']}"}
    return httpx.get(f"{server['MODELMINT_ENDPOINT']}/v2/models/{LINE}", headers=bearer)


def test_a_new_replica_follows_the_champions(
    minted: dict[str, Any], production: dict[str, str], server: dict[str, str]
) -> None:
    key = server["MODELMINT_API_KEY"]
    with environment(MODELMINT_BUCKET=production["MODELMINT_BUCKET"], MODELMINT_API_KEY=key):
        assert follow(server["MODELMINT_ENDPOINT"]) == [LINE]
        assert follow(server["MODELMINT_ENDPOINT"]) == []
    assert served(server).headers["modelmint-digest"] == minted["digest"]


def test_new_data_starts_a_run_whose_version_serves(
    minted: dict[str, Any], production: dict[str, str], server: dict[str, str], tmp_path: Path
) -> None:
    """Watcher -> event -> Redis -> automation -> PostgreSQL -> worker -> flow -> server."""
    variables = {
        **production, **server,
        "MODELMINT_HOME": str(tmp_path), "MODELMINT_KEYS": minted["keys"],
        "MODELMINT_WATCH_PORT": str(free_ports(["http"], paired=False)["http"]),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }  # fmt: skip
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    start = ["worker", "start", "--pool", "modelmint", "--type", "process"]
    log = {name: tmp_path / f"{name}.log" for name in ("worker", "watcher")}
    watcher = [sys.executable, "-m", "deployments.watcher"]
    port = int(variables["MODELMINT_WATCH_PORT"])

    def polls() -> bool:
        return "started" in log["worker"].read_text()

    def listens() -> bool:
        return unanswered(port, "/health", {200}) is None

    with ExitStack() as processes:
        processes.enter_context(running(log["worker"], [*prefect, *start], polls, **variables))
        deploy = subprocess.run(
            [*prefect, "deploy", "--all"],
            cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert deploy.returncode == 0, deploy.stdout + deploy.stderr
        processes.enter_context(running(log["watcher"], watcher, listens, **variables))
        modelmint(variables, "land", LINE, "--slice", "second")
        for _ in range(240):
            if served(server).headers["modelmint-digest"] != minted["digest"]:
                break
            time.sleep(1)
        else:
            pytest.fail("\n".join(path.read_text()[-3000:] for path in log.values()))
        versions = modelmint(variables, "versions", LINE)["versions"]
    assert len(versions) == 2
    newest = max(versions, key=lambda version: int(version["version"]))
    assert newest["digest"] == served(server).headers["modelmint-digest"]
    assert newest["verdict"] == "promote"
