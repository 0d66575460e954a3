"""The services of production, each started for the test on a free loopback port of its own.

PostgreSQL and Redis are Debian's (`apt-get install postgresql redis-server`); Prefect and MLflow
keep their state in them, Dask speaks TLS only. Nothing of the system's own services is touched.
"""

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deployments.local.ports import HOST, free_ports, unanswered
from tests.conftest import ROOT
from tests.production.certificates import dask_settings, write_certificates

SECONDS = 120
# PostgreSQL refuses to run as root.
DATABASE_USER = "postgres"


@contextmanager
def running(
    log: Path, command: list[str], ready: Callable[[], object], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has become ready; ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        for _ in range(SECONDS * 5):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended:\n{log.read_text()[-3000:]}")
            if ready():
                break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{command[0]} is not ready:\n{log.read_text()[-3000:]}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def postgres(folder: Path, port: int) -> Iterator[str]:
    """PostgreSQL with the databases prefect and mlflow; its address without scheme and name."""
    programs = postgres_programs()
    # Not below pytest's own folder, which no other user may enter.
    with TemporaryDirectory(prefix="modelmint-postgres-") as place:
        data, password = Path(place, "data"), Path(place, "password")
        data.mkdir()
        password.write_text("of-this-test\n")
        become: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam(DATABASE_USER)
            for path in (place, data, password):
                os.chown(path, user.pw_uid, user.pw_gid)
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
            become += ["--clear-groups"]
        made = [
            *become, str(programs / "initdb"), "-D", str(data), "-U", "modelmint", "-A",
            "scram-sha-256", "--pwfile", str(password), "--no-sync", "-E", "UTF8", "--locale", "C",
        ]  # fmt: skip
        subprocess.run(made, check=True, cwd="/")
        serve = [
            *become, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", HOST,
            "-k", "", "-c", "fsync=off",
        ]  # fmt: skip
        probe = [str(programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port)]

        def accepts() -> bool:
            return subprocess.run(probe, check=False).returncode == 0

        with running(folder / "postgres.log", serve, accepts):
            for name in ("prefect", "mlflow"):
                create = [str(programs / "createdb"), "-h", HOST, "-p", str(port)]
                create += ["-U", "modelmint", name]
                environment = os.environ | {"PGPASSWORD": "of-this-test"}
                subprocess.run(create, check=True, env=environment)
            yield f"modelmint:of-this-test@{HOST}:{port}"


@contextmanager
def redis(folder: Path, port: int) -> Iterator[str]:
    """Redis; its address without scheme and database."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Redis is not installed: apt-get install redis-server")
    state = folder / "redis"
    state.mkdir()
    serve = [program, "--port", str(port), "--bind", HOST, "--dir", str(state), "--save", ""]
    serve += ["--requirepass", "of-this-test"]
    ask = ["redis-cli", "-p", str(port), "--no-auth-warning", "-a", "of-this-test", "ping"]

    def answers() -> bool:
        return subprocess.run(ask, capture_output=True, check=False).stdout.strip() == b"PONG"

    with running(folder / "redis.log", serve, answers):
        yield f":of-this-test@{HOST}:{port}"


@contextmanager
def prefect(folder: Path, port: int, database: str, events: str) -> Iterator[dict[str, str]]:
    """A Prefect server that keeps nothing in memory: the variables of its clients."""
    home = {"PREFECT_HOME": str(folder / "prefect")}
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
        "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_REDIS_MESSAGING_URL": f"redis://{events}/0",
        "PREFECT_SERVER_DOCKET_URL": f"redis://{events}/1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    serve = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST]
    serve += ["--port", str(port)]
    log = folder / "prefect.log"
    ready = lambda: unanswered(port, "/api/health", {200}) is None  # noqa: E731
    with running(log, serve, ready, **home, **settings):
        yield {"PREFECT_API_URL": f"http://{HOST}:{port}/api", **home}


@contextmanager
def mlflow(folder: Path, port: int, database: str) -> Iterator[dict[str, str]]:
    """An MLflow server over PostgreSQL: the variable of its clients."""
    address = f"postgresql+psycopg2://{database}/mlflow"
    migrate = [sys.executable, "-m", "mlflow", "db", "upgrade", address]
    subprocess.run(migrate, check=True, capture_output=True)
    serve = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--host", HOST,
        "--port", str(port), "--workers", "1", "--no-serve-artifacts",
        "--default-artifact-root", "s3://modelmint/mlflow",
    ]  # fmt: skip
    ready = lambda: unanswered(port, "/health", {200}) is None  # noqa: E731
    with running(folder / "mlflow.log", serve, ready):
        yield {"MLFLOW_TRACKING_URI": f"http://{HOST}:{port}"}


@contextmanager
def dask(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """A TLS scheduler with two workers, who refuse whatever is not encrypted."""
    settings = dask_settings(write_certificates(folder / "tls", "127.0.0.1"))
    address = f"tls://{HOST}:{port}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls"]
    scheduler += ["--host", HOST, "--port", str(port), "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    worker += ["--protocol", "tls", "--host", HOST, "--no-dashboard"]
    log = folder / "dask.log"

    def says(text: str, times: int) -> Callable[[], bool]:
        return lambda: log.read_text().count(text) >= times

    with ExitStack() as processes:
        processes.enter_context(running(log, scheduler, says(address, 1), **settings))
        for number in (1, 2):
            each = [*worker, "--local-directory", str(folder / f"worker-{number}")]
            ready = says("Registered to:", number)
            processes.enter_context(running(log, each, ready, **settings))
        yield {"DASK_SCHEDULER_ADDRESS": address, **settings}


@pytest.fixture(scope="package")
def production(
    store_service: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Variables that name every service of production; the store is SeaweedFS."""
    del store_service
    folder = tmp_path_factory.mktemp("production")
    names = ("postgres", "redis", "prefect", "mlflow", "dask")
    ports = free_ports(names, paired=False)
    bucket = {"MODELMINT_LINES": str(ROOT / "tests" / "lines"), "MODELMINT_BUCKET": "production"}
    with ExitStack() as services:
        database = services.enter_context(postgres(folder, ports["postgres"]))
        events = services.enter_context(redis(folder, ports["redis"]))
        os.environ.update(bucket)
        started = [
            services.enter_context(prefect(folder, ports["prefect"], database, events)),
            services.enter_context(mlflow(folder, ports["mlflow"], database)),
            services.enter_context(dask(folder, ports["dask"])),
        ]
        for name in bucket:
            del os.environ[name]
        yield {
            **bucket, **started[0], **started[1], **started[2],
            "TEST_DATABASE": f"postgresql+psycopg2://{database}", "TEST_EVENTS": f"redis://{events}",
        }  # fmt: skip
