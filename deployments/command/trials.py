"""Commands that try a version on real requests before it is promoted: canary, shadow."""

import datetime
from typing import Annotated, Any

import typer

from deployments.command.output import AsJson, LineName, ask, show, table

app = typer.Typer()
Tried = Annotated[
    int | None, typer.Argument(min=1, help="The version to try; without it: how it goes.")
]
End = Annotated[bool, typer.Option("--end", help="End the trial; its counts go into the audit.")]


@app.command()
def canary(
    line: LineName,
    version: Tried = None,
    percent: Annotated[
        float | None, typer.Option(help="Of the requests that it answers, or of the keys.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose requests it answers.")] = None,
    by_key: Annotated[
        bool, typer.Option("--by-key", help="Share out keys, so that each sees one version.")
    ] = False,
    end: End = False,
    as_json: AsJson = False,
) -> None:
    """Let a version answer some requests of a line, and compare it with the one in production."""
    how = {"percent": percent, "tenant": tenant, "by": "key" if by_key else None}
    _show(line, "canary", _trial("canary", line, version, end, how), as_json)


@app.command()
def shadow(
    line: LineName, version: Tried = None, end: End = False, as_json: AsJson = False
) -> None:
    """Have a version compute what was answered once more, and compare; callers notice nothing."""
    _show(line, "shadow", _trial("shadow", line, version, end, {}), as_json)


def _trial(
    kind: str, line: str, version: int | None, end: bool, how: dict[str, Any]
) -> dict[str, Any]:
    from deployments.local.stack import SERVER, STORE, stack

    if end and version is not None:
        raise ValueError(f"either start a {kind} or end it")
    with stack(STORE, SERVER):
        if version is not None:
            from tasks.production import try_out

            return try_out(line, kind, version, **how)
        path = f"/v1/lines/{line}/{kind}"
        found: dict[str, Any] = ask("POST", f"{path}/end", {}) if end else ask("GET", path)
        return found


def _show(line: str, kind: str, found: dict[str, Any], as_json: bool) -> None:
    trial = found[kind]

    def text() -> None:
        if trial is None:
            print(f"{line} has no {kind}")
            return
        since = datetime.datetime.fromtimestamp(trial["since"], datetime.UTC)
        share = trial.get("tenant") or f"{trial.get('percent')}% of {trial.get('by')}s"
        takes = share if kind == "canary" else "every request, once it was answered"
        print(f"{kind}: version {trial['version']}, {takes}")
        print(f"since {since:%Y-%m-%d %H:%M} UTC, by {trial['who']}")
        compared = trial["comparison"]
        if kind == "canary":
            table([{"": role, **counts} for role, counts in compared.items()])
        else:
            table([{"": name.replace("_", " "), "counted": n} for name, n in compared.items()])

    show(as_json, found, text)
