"""The command line: thin; it starts what is missing, calls the flows and the server, and prints.

Only Typer is imported at the top, so that help is instant.
"""

import json
import os
import signal
import sys

import typer

from deployments.command import (
    keys,
    monitor,
    platform,
    produce,
    proof,
    score,
    search,
    serving,
    trials,
    trust,
)

app = typer.Typer(
    help="Mint model versions: from objects in a bucket to a gated, compressed, served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (
    produce.app,
    search.app,
    proof.app,
    serving.app,
    trials.app,
    score.app,
    monitor.app,
    platform.app,
    keys.reports,
):
    app.add_typer(group)
app.add_typer(keys.app, name="keys")
app.add_typer(trust.app, name="trust")


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
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        if "--json" in sys.argv:
            print(json.dumps({"error": message}))
        else:
            print(f"modelmint: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
