"""Commands that make versions: lines, land, run, versions."""

import contextlib
import importlib
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.command.output import AsJson, LineName, post, show, table

app = typer.Typer()
WRITTEN = ("application/json", "text/plain")


if TYPE_CHECKING:
    import polars as pl

    from flows.produce import Production


@app.command()
def lines(as_json: AsJson = False) -> None:
    """List the model lines."""
    from models import catalog

    found = [
        {
            "name": line.name,
            "title": line.title,
            "family": type(line.model).__module__.rpartition(".")[2],
            "metric": line.objective.primary.name,
            "slices": list(line.example.slices) if line.example else [],
        }
        for line in catalog.lines().values()
    ]
    show(as_json, {"lines": found}, lambda: table(found))


@app.command()
def land(
    line: LineName,
    part: Annotated[str | None, typer.Option("--slice", help="Land only this slice.")] = None,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Land nothing where something is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a line's example data, or one slice of it, into the bucket."""
    from deployments.local.stack import STORE, stack
    from models import catalog

    spec = catalog.find(line)
    with stack(STORE):
        from tasks.land import is_empty
        from tasks.land import land as land_example

        found = [] if if_empty and not is_empty(spec) else land_example(spec, part)
    answer = {"line": line, "landed": found}
    there = f"nothing landed: there are objects below raw/{spec.data.raw} already"
    show(as_json, answer, lambda: table(found) if found else print(there))


@app.command()
def run(
    line: LineName,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A changed setting: training.epochs=3")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Produce a version of a line from what is in the bucket, and serve it."""
    from rich.console import Console

    from deployments.local.stack import PREFECT, SERVER, STORE, stack
    from models import catalog
    from models.changes import changed

    spec = catalog.find(line)
    sections = changed(spec, changes or [])
    from tasks import cluster

    console = Console(stderr=as_json)
    # MLflow takes two seconds to import, and the services about as long to start.
    imports = threading.Thread(target=importlib.import_module, args=("mlflow",))
    with contextlib.ExitStack() as services:
        with console.status("starting the store, Prefect and the model server"):
            imports.start()
            services.enter_context(stack(STORE, PREFECT, SERVER))
            imports.join()
        services.callback(cluster.close)
        # Prefect reads its environment when it is imported, and that names the services now.
        from deployments.local import terminal
        from flows.produce import produce
        from tasks.progress import listening

        with terminal.Progress(console) as progress, listening(progress):
            found = produce(line, **sections)
        example = _example(found)
    show(as_json, _summary(found), lambda: terminal.screen(console, spec.title, found, example))


def _summary(found: "Production") -> dict[str, Any]:
    return {
        "line": found.version.line,
        "version": found.version.number,
        "digest": found.version.digest,
        "verdict": found.verdict.decision,
        "reasons": found.verdict.reasons,
        "endpoint": found.endpoint.url,
        "metrics": found.verdict.metrics,
        "baselines": found.report.baselines,
        "uncompressed": {name: m.model_dump() for name, m in found.report.metrics.items()},
        "rows": found.dataset.rows,
        "refused": [refusal.model_dump() for refusal in found.dataset.refused],
        "compression": {"chosen": found.artifact.chosen},
        "stages": [stage.model_dump(mode="json", exclude={"identity"}) for stage in found.stages],
    }


def _example(found: "Production") -> dict[str, Any]:
    """A real request: a test row as a person would send it, and what the server answers."""
    from deployments.local.terminal import picture
    from tasks.dataset import partitions

    if found.endpoint.serving != found.version.number:
        # Another version serves, and its features may be others.
        return {}
    signature = found.dataset.signature
    row: pl.DataFrame = next(iter(partitions(found.dataset, "test"))).head(1)
    payload, media_type = signature.features.write(row)
    path = f"/v1/lines/{found.version.line}/predict"
    answer = post(path, payload, media_type)
    true = row[signature.objective.target][0]
    return {
        "url": path,
        "payload": payload.decode() if media_type in WRITTEN else media_type,
        "picture": picture(payload) if media_type == "image/png" else "",
        "answer": answer["predictions"][0],
        # A language model is sent its target: there is no true answer then.
        "true": None if true == payload.decode(errors="replace") else true,
    }


@app.command()
def versions(line: LineName, as_json: AsJson = False) -> None:
    """List the registered versions of a line."""
    from deployments.local.stack import STORE, stack
    from models import catalog

    catalog.find(line)
    with stack(STORE):
        from tasks.versions import versions as registered

        found = registered(line)
    shown = [
        {
            "version": one["version"],
            "digest": one["digest"][:12],
            "verdict": one["verdict"],
            "production": one["production"],
            "replayed": f"{one['replayed']} {one['replayed_at'][:10]}".strip(),
            "metrics": one["metrics"],
        }
        for one in found
    ]
    show(as_json, {"line": line, "versions": found}, lambda: table(shown))
