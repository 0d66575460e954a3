"""The command line: thin; it starts what is missing, calls the flows and the server, and prints.

Only Typer is imported at the top, so that help is instant.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import polars as pl

    from flows.produce import Production

app = typer.Typer(
    help="Mint model versions: from objects in a bucket to a gated, compressed, served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
LineName = Annotated[str, typer.Argument(help="Name of a model line; see `modelmint lines`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


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
    _print(as_json, {"lines": found}, lambda: _table(found))


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
    _print(as_json, answer, lambda: _table(found) if found else print(there))


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
    _print(as_json, _summary(found), lambda: terminal.screen(console, spec.title, found, example))


def _summary(found: "Production") -> dict[str, Any]:
    return {
        "line": found.version.line,
        "version": found.version.number,
        "digest": found.version.digest,
        "verdict": found.verdict.decision,
        "reasons": found.verdict.reasons,
        "endpoint": found.endpoint.url,
        "metrics": found.verdict.metrics,
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
    answer = _post(path, payload, media_type)
    return {
        "url": path,
        "payload": payload.decode() if media_type == "application/json" else media_type,
        "picture": picture(payload) if media_type == "image/png" else "",
        "answer": answer["predictions"][0],
        "true": row[signature.objective.target][0],
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
    _print(as_json, {"line": line, "versions": found}, lambda: _table(found))


@app.command()
def replay(
    line: LineName,
    version: Annotated[int, typer.Argument(min=1, help="Number of a registered version.")],
    as_json: AsJson = False,
) -> None:
    """Make a version again from its recipe, with no cache, and compare every stage.

    Exit code 0: identical; 1: a stage differs; 2: it cannot be made again here.
    """
    from rich.console import Console

    from deployments.local.stack import PREFECT, STORE, stack
    from tasks import cluster
    from tasks.progress import listening

    console = Console(stderr=as_json)
    with stack(STORE, PREFECT):
        # Prefect reads its environment when it is imported, and that names the services now.
        from deployments.local.terminal import Progress
        from flows.replay import replay as replay_flow
        from tasks.replay import CannotReplayError

        try:
            with Progress(console) as progress, listening(progress):
                found = replay_flow(line, version)
        except CannotReplayError as error:
            found = None
            reason = str(error)
        finally:
            cluster.close()
    if found is None:
        _print(
            as_json,
            {"line": line, "version": version, "verdict": "cannot be replayed", "reason": reason},
            lambda: console.print(f"{line} {version} cannot be replayed here: {reason}"),
        )
        raise typer.Exit(2)
    stages = [stage.model_dump() for stage in found.stages]
    _print(as_json, found.model_dump(mode="json"), lambda: _table(stages))
    if not as_json:
        console.print(f"{line} version {version}: [bold]{found.verdict}[/bold]")
    raise typer.Exit(0 if found.verdict == "identical" else 1)


@app.command()
def predict(
    line: LineName,
    file: Annotated[Path, typer.Argument(help="A PNG, a JSON record or a CSV of rows.")],
    as_json: AsJson = False,
) -> None:
    """Ask the champion of a line about a file."""
    from deployments.local.stack import SERVER, STORE, stack

    media_types = {".json": "application/json", ".csv": "text/csv", ".png": "image/png"}
    media_type = media_types.get(file.suffix.lower(), "application/octet-stream")
    payload = file.read_bytes()
    with stack(STORE, SERVER):
        answer = _post(f"/v1/lines/{line}/predict", payload, media_type)
    _print(as_json, answer, lambda: _table(answer["predictions"]))


@app.command()
def serve(as_json: AsJson = False) -> None:
    """Bring the champions of all lines back to life, until interrupted."""

    from deployments.local.stack import SERVER, STORE, stack

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with stack(STORE, SERVER) as addresses:
        found = {"endpoint": addresses[SERVER], "store": addresses[STORE]}
        _print(as_json, found, lambda: _table([found]))
        ended.wait()


def _post(path: str, payload: bytes, media_type: str) -> Any:
    import httpx

    from tasks.deploy import ENDPOINT_SETTING

    url = os.environ[ENDPOINT_SETTING] + path
    try:
        answer = httpx.post(url, content=payload, headers={"content-type": media_type}, timeout=60)
    except httpx.HTTPError as error:
        raise ConnectionError(f"the model server at {url} does not answer: {error}") from None
    if answer.status_code != 200:
        raise LookupError(f"{url}: {answer.status_code}: {answer.text}")
    return answer.json()


def _print(as_json: bool, answer: Any, show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
    else:
        show()


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(rows[0] if rows else ("nothing",)))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run a command; what went wrong is one line on standard error, or JSON, and exit code 1."""
    # As for Ctrl-C: what was started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except Exception as error:
        if os.environ.get("MODELMINT_TRACEBACK"):
            raise
        message = f"{type(error).__name__}: {error}"
        if "--json" in sys.argv:
            print(json.dumps({"error": message}))
        else:
            print(f"modelmint: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
