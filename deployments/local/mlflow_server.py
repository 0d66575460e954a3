"""The MLflow server of `modelmint up`; without it MLflow is the same SQLite file, opened directly.

Measured on two cores: it serves after 6 s, longer when others start beside it.
"""

import os
import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Service


def mlflow_server(home: Path) -> Service:
    """The MLflow server over `home/mlflow.db`; artifacts are in the bucket."""
    home = home.resolve()
    return Service(
        name="mlflow",
        state=home / "mlflow",
        command=lambda ports: _command(home, ports),
        missing=lambda ports: unanswered(ports["http"], "/health", {200}),
        environment=lambda _: {
            # It would start two more processes, for jobs that nothing here submits.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "DO_NOT_TRACK": "true",
        },
        hidden=("MLFLOW_",),
        start_timeout=120.0,
    )


def database(home: Path) -> str:
    """The address of MLflow's database."""
    return f"sqlite:///{home.resolve()}/mlflow.db"


def environment(home: Path) -> dict[str, str]:
    """The variable with which clients find MLflow: the server if it is up, else the database."""
    running = mlflow_server(home).running()
    return {"MLFLOW_TRACKING_URI": running.url if running else database(home)}


def _command(home: Path, ports: Ports) -> list[str]:
    bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", HOST, "--port", str(ports["http"])),
        *("--backend-store-uri", database(home)),
        *("--artifacts-destination", f"s3://{bucket}/mlflow"),
    ]
