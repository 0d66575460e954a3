"""The services one command needs, each only where the environment does not name another.

AWS_ENDPOINT_URL, PREFECT_API_URL, MLFLOW_TRACKING_URI and MODELMINT_ENDPOINT name services that
run elsewhere; for each that is not set, one is started on loopback and keeps its data under the
home folder. They start side by side and end with the last command that uses them. After
`modelmint up` those that are up are used, its MLflow server and Dask cluster too.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deployments.local import dask_cluster, mlflow_server, model_server, prefect_server, store
from deployments.local.service import Running, Service
from models.catalog import SETTING as LINES_SETTING
from models.trust import KEYS_SETTING

HOME_SETTING = "MODELMINT_HOME"
STORE, PREFECT, SERVER = "store", "prefect", "model server"
# With a store of our own these would still lead boto3 to somebody else's.
FOREIGN = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL_S3")
ADDRESSES = {
    STORE: "AWS_ENDPOINT_URL",
    PREFECT: "PREFECT_API_URL",
    SERVER: "MODELMINT_ENDPOINT",
}
ELSEWHERE = (*ADDRESSES.values(), "MLFLOW_TRACKING_URI", "DASK_SCHEDULER_ADDRESS")
"""What names a service of somebody else's; the last two start none here when they are not set."""


def home() -> Path:
    """The folder that holds everything a laptop run leaves: MODELMINT_HOME or `.modelmint`."""
    found = Path(os.environ.get(HOME_SETTING, ".modelmint")).resolve()
    found.mkdir(parents=True, exist_ok=True)
    return found


def create_bucket() -> None:
    """Create the bucket in a store of our own; elsewhere it is the operator's to create."""
    from tasks.store import store as bucket

    bucket().create_bucket()


@contextmanager
def stack(*wanted: str) -> Iterator[dict[str, str]]:
    """Have the wanted services running and the environment name them; yields their addresses.

    Raises ServiceError when one cannot be started.
    """
    folder = home()
    before = dict(os.environ)
    settings(folder)
    with ExitStack() as services:
        try:
            _start(services, folder, [name for name in wanted if ADDRESSES[name] not in before])
            yield {name: os.environ[ADDRESSES[name]] for name in wanted}
        finally:
            _drain()
            services.close()
            os.environ.clear()
            os.environ.update(before)


def settings(folder: Path) -> None:
    """Set the variables that start no service; what the user has set stays."""
    os.environ[HOME_SETTING] = str(folder)
    found = mlflow_server.environment(folder) | dask_cluster.environment(folder)
    found[KEYS_SETTING] = str(folder / "keys")
    found["PREFECT_HOME"] = str(folder / "prefect")
    # The UI gets every log; the terminal has its own progress.
    found["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    found["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    # By default 180 s: a run that died would be noticed after more than two minutes.
    found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    # A Prefect that was imported too early to see its server would quietly start another one.
    found["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
    for name, value in found.items():
        os.environ.setdefault(name, value)
    if given := os.environ.get(LINES_SETTING):
        # Services start in folders of their own.
        absolute = [str(Path(one).resolve()) for one in given.split(os.pathsep) if one]
        os.environ[LINES_SETTING] = os.pathsep.join(absolute)
    for name in ("NO_PROXY", "no_proxy"):
        around = [os.environ.get(name, ""), "127.0.0.1", "localhost"]
        os.environ[name] = ",".join(filter(None, around))


def _drain() -> None:
    """Let Prefect send its last logs and events while its server still listens.

    Left to the end of the process it would wait a minute for a server that is gone.
    """
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)
        EventsWorker.drain_all(timeout=5)


def _start(services: ExitStack, folder: Path, names: list[str]) -> None:
    known: dict[str, Service] = {
        STORE: store.store(folder),
        PREFECT: prefect_server.prefect_server(folder),
        SERVER: model_server.model_server(folder),
    }

    def use(name: str) -> Running:
        return services.enter_context(known[name].use())

    # The model server reads the store, so the store comes first and the others start meanwhile.
    with ThreadPoolExecutor(len(ADDRESSES)) as pool:
        others = {n: pool.submit(use, n) for n in names if n not in (STORE, SERVER)}
        if STORE in names:
            for name in FOREIGN:
                os.environ.pop(name, None)
            os.environ.update(store.environment(folder, use(STORE)))
            create_bucket()
        if SERVER in names:
            os.environ.update(model_server.environment(folder, use(SERVER)))
        for future in others.values():
            os.environ.update(prefect_server.environment(future.result()))
