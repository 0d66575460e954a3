"""The Prefect server of a laptop run: API, scheduler and UI on loopback, SQLite below.

Measured on two cores: it serves after 8.8 s (new database) or 3.0 s, and stops in 0.2 s.
"""

import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Running, Service


def prefect_server(home: Path) -> Service:
    """The Prefect server whose database and settings live in `home/prefect`."""
    state = home.resolve() / "prefect"
    return Service(
        name="prefect",
        state=state,
        command=_command,
        missing=lambda ports: unanswered(ports["http"], "/api/health", {200}),
        environment=lambda ports: _settings(state, ports),
        # The user's own API or database must not become this server's.
        hidden=("PREFECT_API", "PREFECT_SERVER_API", "PREFECT_SERVER_DATABASE", "PREFECT_PROFILE"),
        # The first start creates the database, which a busy machine makes long.
        start_timeout=120.0,
    )


def environment(running: Running) -> dict[str, str]:
    """The variables with which flows, workers and the `prefect` command find the server."""
    return {
        "PREFECT_API_URL": f"{running.url}/api",
        "PREFECT_HOME": str(running.log.parent),
    }


def _command(ports: Ports) -> list[str]:
    server = [sys.executable, "-m", "prefect", "server", "start"]
    return [*server, "--host", HOST, "--port", str(ports["http"])]


def _settings(state: Path, ports: Ports) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(state),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{state / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{ports['http']}/api",
    }
