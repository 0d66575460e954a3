"""Commands that use versions: predict, serve, promote, rollback."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.command.output import AsJson, LineName, Number, Workers, post, show, table

app = typer.Typer()
Reason = Annotated[str, typer.Option(help="Why, for the record and the audit log.")]


@app.command()
def predict(
    line: LineName,
    file: Annotated[
        Path, typer.Argument(help="A PNG, a WAV, a text, a JSON record or a CSV of rows.")
    ],
    as_json: AsJson = False,
) -> None:
    """Ask the champion of a line about a file."""
    from deployments.local.stack import SERVER, STORE, stack

    media_types = {
        ".json": "application/json", ".csv": "text/csv", ".png": "image/png",
        ".wav": "audio/wav", ".txt": "text/plain",
    }  # fmt: skip
    media_type = media_types.get(file.suffix.lower(), "application/octet-stream")
    payload = file.read_bytes()
    with stack(STORE, SERVER):
        answer = post(f"/v1/lines/{line}/predict", payload, media_type)
    show(as_json, answer, lambda: table(answer["predictions"]))


@app.command()
def serve(workers: Workers = None, as_json: AsJson = False) -> None:
    """Bring the champions of all lines back to life, until interrupted."""
    from deployments.local.model_server import use_workers
    from deployments.local.stack import SERVER, STORE, stack

    use_workers(workers)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with stack(STORE, SERVER) as addresses:
        found = {"endpoint": addresses[SERVER], "store": addresses[STORE]}
        show(as_json, found, lambda: table([found]))
        ended.wait()


@app.command()
def promote(line: LineName, version: Number, reason: Reason = "", as_json: AsJson = False) -> None:
    """Put a registered version into production, whatever the gate said of it."""
    from deployments.local.stack import SERVER, STORE, stack

    with stack(STORE, SERVER):
        from tasks.production import promote_version
        from tasks.promotion import mirror

        found = promote_version(line, version, reason)
        _afterwards(found, lambda: mirror(line))
    show(as_json, found, lambda: table([found]))


@app.command()
def rollback(
    line: LineName,
    version: Annotated[
        int | None, typer.Argument(min=1, help="By default the version before the present one.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Put an earlier version back into production, even while the store and MLflow are down.

    Runs on unchanged data no longer promote the version it replaces.
    """
    from deployments.local.stack import SERVER, STORE, stack

    # The server alone first: a store that does not answer must not hold it up.
    with stack(SERVER):
        from tasks.production import catch_up, roll_back

        found = roll_back(line, version, reason)

    def record() -> None:
        with stack(STORE, SERVER):
            catch_up(line)

    _afterwards(found, record)
    show(as_json, found, lambda: table([found]))


def _afterwards(found: dict[str, Any], act: Callable[[], None]) -> None:
    """What follows a change that is done: it may fail now, and is then made up for later."""
    try:
        act()
        found["recorded"] = True
    except Exception as error:
        found["recorded"] = False
        print(
            f"modelmint: {found['line']} version {found['version']} is in production; the promotion"
            f" record and MLflow's alias will follow: {error}",
            file=sys.stderr,
        )
