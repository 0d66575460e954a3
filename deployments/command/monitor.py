"""The command that looks for drift: monitor."""

from typing import Annotated

import typer

from deployments.command.output import AsJson, LineName, show, table

app = typer.Typer()


@app.command()
def monitor(
    line: LineName,
    false_alarms: Annotated[
        float, typer.Option(min=1e-6, max=0.49, help="Chance to find drift where there is none.")
    ] = 0.01,
    margin: Annotated[
        float, typer.Option(min=0, max=0.99, help="Smallest difference that counts, 0 to 1.")
    ] = 0.05,
    minimum_rows: Annotated[
        int, typer.Option(min=20, help="A sample of fewer rows is not judged.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Compare what came since the champion was made with what it was trained on.

    Exit code 0: no drift is shown; 3: something drifted.
    """
    from rich.console import Console

    from deployments.local.stack import PREFECT, STORE, stack
    from tasks import cluster
    from tasks.progress import listening

    console = Console(stderr=as_json)
    with stack(STORE, PREFECT):
        # Prefect reads its environment when it is imported, and that names the services now.
        from deployments.local.terminal import Progress
        from flows.monitor import monitor as monitor_flow
        from tasks.drift import Search
        from tasks.publish_drift import findings_table, report_key, verdict

        search = Search(false_alarms=false_alarms, margin=margin, minimum_rows=minimum_rows)
        try:
            with Progress(console) as progress, listening(progress):
                found = monitor_flow(line, search)
        finally:
            cluster.close()
        answer = found.model_dump(mode="json", exclude={"stored", "fingerprint"})
        answer |= {"drifted": found.drifted, "report": report_key(found)}
        show(as_json, answer, lambda: table(findings_table(found)))
        if not as_json:
            console.print(verdict(found))
    raise typer.Exit(3 if found.drifted else 0)
