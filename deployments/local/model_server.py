"""The server of released models in a laptop run: `deployments.serving` on loopback."""

import os
import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Running, Service

FIRST_KEY = "api-key"
WORKERS_SETTING = "MODELMINT_WORKERS"


def use_workers(count: int | None) -> None:
    """Have a model server that is started from here on serve with so many processes."""
    if count is not None:
        os.environ[WORKERS_SETTING] = str(count)


def model_server(home: Path) -> Service:
    """The model server that answers for the versions in `home/serving`."""
    home = home.resolve()
    return Service(
        name="model_server",
        # Not the repository itself: its folders are models.
        state=home / "model_server",
        command=lambda ports: _command(home / "serving", ports),
        missing=lambda ports: unanswered(ports["http"], "/v2/health/live", {200}),
    )


def environment(home: Path, running: Running) -> dict[str, str]:
    """The variables with which clients find the server and are let in.

    A key that MODELMINT_API_KEY names already is used rather than the first one.
    """
    key = os.environ.get("MODELMINT_API_KEY") or (home.resolve() / FIRST_KEY).read_text().strip()
    return {"MODELMINT_ENDPOINT": running.url, "MODELMINT_API_KEY": key}


def _command(repository: Path, ports: Ports) -> list[str]:
    server = [sys.executable, "-m", "deployments.serving"]
    address = ["--host", HOST, "--port", str(ports["http"])]
    first_key = ["--first-key", str(repository.parent / FIRST_KEY)]
    workers = ["--workers", os.environ.get(WORKERS_SETTING, "1")]
    return [*server, *address, *workers, "--repository", str(repository), *first_key]
