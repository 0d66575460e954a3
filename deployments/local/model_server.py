"""The server of released models in a laptop run: `deployments.serving` on loopback."""

import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Running, Service


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


def environment(running: Running) -> dict[str, str]:
    """The variable with which clients find the server."""
    return {"MODELMINT_ENDPOINT": running.url}


def _command(repository: Path, ports: Ports) -> list[str]:
    server = [sys.executable, "-m", "deployments.serving"]
    address = ["--host", HOST, "--port", str(ports["http"])]
    return [*server, *address, "--repository", str(repository)]
