"""Commands that use versions: predict, serve."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from deployments.command.output import AsJson, LineName, post, show, table

app = typer.Typer()


@app.command()
def predict(
    line: LineName,
    file: Annotated[Path, typer.Argument(help="A PNG, a text, a JSON record or a CSV of rows.")],
    as_json: AsJson = False,
) -> None:
    """Ask the champion of a line about a file."""
    from deployments.local.stack import SERVER, STORE, stack

    media_types = {
        ".json": "application/json",
        ".csv": "text/csv",
        ".png": "image/png",
        ".txt": "text/plain",
    }
    media_type = media_types.get(file.suffix.lower(), "application/octet-stream")
    payload = file.read_bytes()
    with stack(STORE, SERVER):
        answer = post(f"/v1/lines/{line}/predict", payload, media_type)
    show(as_json, answer, lambda: table(answer["predictions"]))


@app.command()
def serve(as_json: AsJson = False) -> None:
    """Bring the champions of all lines back to life, until interrupted."""

    from deployments.local.stack import SERVER, STORE, stack

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with stack(STORE, SERVER) as addresses:
        found = {"endpoint": addresses[SERVER], "store": addresses[STORE]}
        show(as_json, found, lambda: table([found]))
        ended.wait()
