"""Commands that use versions: predict, serve, promote, rollback."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.command.output import (
    AsJson,
    Certificate,
    Https,
    LineName,
    Number,
    PrivateKey,
    Workers,
    post,
    show,
    table,
)
from deployments.command.refusals import is_refusal, refusing

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
def serve(
    workers: Workers = None,
    https: Https = False,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    as_json: AsJson = False,
) -> None:
    """Bring the champions of all lines back to life, over HTTP and gRPC, until interrupted."""
    from deployments.local.model_server import addresses as others
    from deployments.local.model_server import use_https, use_workers
    from deployments.local.stack import SERVER, STORE, home, stack

    use_workers(workers)
    use_https(home(), https, certificate, private_key)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with stack(STORE, SERVER) as addresses:
        found = {"endpoint": addresses[SERVER], **others(home()), "store": addresses[STORE]}
        show(as_json, found, lambda: table([{"": n, "address": a} for n, a in found.items()]))
        ended.wait()


@app.command()
def promote(line: LineName, version: Number, reason: Reason = "", as_json: AsJson = False) -> None:
    """Put a registered version into production, whatever the gate said of it.

    Exit code 2: refused, nothing has changed; 70: a bug.
    """
    from deployments.local.stack import SERVER, STORE, stack

    with refusing(f"{line} {version} is not promoted", as_json), stack(STORE, SERVER):
        from tasks.production import promote_version
        from tasks.promotion import mirror

        found = promote_version(line, version, reason)
        bug = _afterwards(found, lambda: mirror(line))
    _told(found, bug, as_json)


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

    Runs on unchanged data no longer promote the version it replaces. Exit code 2: refused, nothing
    has changed; 70: a bug.
    """
    from deployments.local.stack import SERVER, STORE, stack

    # The server alone first: a store that does not answer must not hold it up.
    with refusing(f"{line} is not rolled back", as_json), stack(SERVER):
        from tasks.production import catch_up, roll_back

        found = roll_back(line, version, reason)

    def record() -> None:
        with stack(STORE, SERVER):
            catch_up(line)

    _told(found, _afterwards(found, record), as_json)


def _afterwards(found: dict[str, Any], act: Callable[[], None]) -> bool:
    """What follows a change that is done: it may be refused now, and is then made up for later.

    Returns whether it failed by a bug, which is told with its traceback.
    """
    try:
        act()
        found["recorded"] = True
    except Exception as error:
        found["recorded"] = False
        bug = not is_refusal(error)
        if bug:
            traceback.print_exc()
        print(
            f"modelmint: {found['line']} version {found['version']} is in production; the promotion"
            f" record and MLflow's alias will follow: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return bug
    return False


def _told(found: dict[str, Any], bug: bool, as_json: bool) -> None:
    """Show a change that is done; exit code 70 when what followed it failed by a bug."""
    show(as_json, found, lambda: table([found]))
    if bug:
        raise typer.Exit(os.EX_SOFTWARE)
