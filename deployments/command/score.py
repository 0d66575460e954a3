"""The command that scores in batch: score."""

from typing import Annotated, Any

import typer

from deployments.command.output import AsJson, LineName, show, table

app = typer.Typer()


@app.command()
def score(
    line: LineName,
    prefix: Annotated[str, typer.Argument(help="Where the objects are in the bucket.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="The version that answers, by default the champion.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Key prefix for the answers, by default below scored/.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer every record of the raw objects below a prefix; their target may be absent.

    What was scored is not scored again. Exit code 1: an object changed meanwhile; run again.
    """
    from rich.console import Console

    from deployments.local.stack import PREFECT, STORE, stack
    from tasks import cluster
    from tasks.progress import listening

    console = Console(stderr=as_json)
    with stack(STORE, PREFECT):
        # Prefect reads its environment when it is imported, and that names the services now.
        from deployments.local.terminal import Progress
        from flows.score import score as score_flow

        try:
            with Progress(console) as progress, listening(progress):
                found = score_flow(line, prefix, version, output)
        finally:
            cluster.close()
    answer: dict[str, Any] = found.model_dump(mode="json", exclude={"stored", "fingerprint"})
    refused = [refusal.model_dump() for refusal in found.refusals]
    rows = {n: answer[n] for n in ("line", "version", "objects", "rows", "scored", "manifest")}
    show(as_json, answer, lambda: table([rows]))
    if refused and not as_json:
        table(refused)
    raise typer.Exit(1 if found.missed else 0)
