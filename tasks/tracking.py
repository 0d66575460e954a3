"""MLflow: the run that records a version's training, and the figures that belong to it."""

import math
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.store import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "modelmint.run"


def address() -> str:
    """MLFLOW_TRACKING_URI, or empty for MLflow's own default."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def exists() -> bool:
    """Whether the records can still be there: a file of a local database that was not deleted."""
    prefix = "sqlite:///"
    return not address().startswith(prefix) or Path(address().removeprefix(prefix)).exists()


def client() -> "MlflowClient":
    """The client for MLFLOW_TRACKING_URI."""
    return _connected(address())


@cache
def _connected(address: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(address or None)


def experiment(line: str) -> str:
    """The id of the line's experiment; its artifacts go to our bucket."""
    found = client().get_experiment_by_name(line)
    if found is not None:
        return str(found.experiment_id)
    return str(client().create_experiment(line, artifact_location=store().uri(f"mlflow/{line}")))


def page(run: str) -> str:
    """The run's page of the MLflow server; empty where MLFLOW_TRACKING_URI names none."""
    if not address().startswith("http"):
        return ""
    number = client().get_run(run).info.experiment_id
    return f"{address().rstrip('/')}/#/experiments/{number}/runs/{run}"


def run_for(line: str, identity: str, parent: str = "") -> str:
    """The MLflow run with that identity, created, below the parent, when there is none."""
    number = experiment(line)
    found = client().search_runs([number], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {RUN_TAG: identity, "mlflow.source.name": line}
    if parent:
        tags["mlflow.parentRunId"] = parent
    created = client().create_run(number, tags=tags)
    return str(created.info.run_id)


def log_epoch(run: str, detail: dict[str, Any]) -> None:
    """The figures of one epoch."""
    step = int(detail["epoch"])
    for name, value in detail.items():
        if isinstance(value, int | float) and name not in ("epoch", "epochs"):
            client().log_metric(run, name, float(value), step=step)


def log_settings(run: str, settings: dict[str, Any], prefix: str = "") -> None:
    """Nested settings as flat parameters; raises MlflowException if one was logged otherwise."""
    from mlflow.entities import Param

    flat = dict(_flat(settings, prefix))
    client().log_batch(run, params=[Param(k, str(v)[:500]) for k, v in flat.items()])


def log_metrics(run: str, metrics: dict[str, float]) -> None:
    """Figures of the whole run."""
    for name, value in metrics.items():
        if math.isfinite(value):
            client().log_metric(run, name, value)


def log_file(run: str, name: str, content: bytes) -> None:
    """A file among the run's artifacts."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        client().log_artifact(run, os.fspath(path), str(Path(name).parent).replace(".", ""))


def _flat(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value
