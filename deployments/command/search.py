"""The command that looks for better settings of a line."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.command.output import AsJson, LineName, show, table

if TYPE_CHECKING:
    from tasks.search import Record

app = typer.Typer()


@app.command()
def search(
    line: LineName,
    trials: Annotated[int, typer.Option(min=1, help="How many trainings.")] = 16,
    parallel: Annotated[
        int, typer.Option(min=1, help="Trainings asked for at once; another number, another search")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="What to search: training.optimizer.lr=1e-4..1e-2, model.size=small,base"
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of all trials: training.epochs=3")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a line with other settings; prints the best as words for `modelmint run --set`."""
    from deployments.local.stack import PREFECT, STORE, stack
    from models import catalog
    from models.changes import UnknownSettingError, changed
    from models.space import parsed

    sections = changed(catalog.find(line), changes or [])
    other = sections.keys() - {"model", "training"}
    if other:
        raise UnknownSettingError(f"--set: a search trains, and {other.pop()} is no part of it")
    space = parsed(over or [])
    with stack(STORE, PREFECT):
        # Prefect reads its environment when it is imported, and that names the services now.
        from flows.search import search as flow
        from tasks import cluster

        try:
            found = flow(line, trials, parallel, seed, space or None, **sections)
        finally:
            cluster.close()
    show(as_json, _summary(found), lambda: _print(found))


def _summary(found: "Record") -> dict[str, Any]:
    best = found.best
    return {
        "line": found.line,
        "metric": found.metric.name,
        "best": best.value,
        "set": list(best.words),
        "trials": [trial.model_dump(mode="json") for trial in found.trials],
    }


def _print(found: "Record") -> None:
    name, best = found.metric.name, found.best
    rows = [
        {"trial": t.number, **t.settings, name: t.error if t.value is None else t.value}
        for t in found.trials
    ]
    table(rows)
    words = " ".join(f"--set {word}" for word in best.words)
    print(f"best: trial {best.number}, validation {name} {best.value:.4g}")
    print(f"modelmint run {found.line} {words}")
