"""Commands about callers of the model server: keys, usage, audit."""

import datetime
from typing import Annotated, Any

import typer

from deployments.command.output import AsJson, ask, show, table

app = typer.Typer(help="The API keys of the model server's callers.", no_args_is_help=True)
reports = typer.Typer()
KeyId = Annotated[str, typer.Argument(help="The key's id; see `modelmint keys list`.")]
Expires = Annotated[
    datetime.datetime | None,
    typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="When it no longer counts, in UTC."),
]


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.")],
    lines: Annotated[list[str] | None, typer.Option("--line", help="Only for this line.")] = None,
    verbs: Annotated[
        list[str] | None, typer.Option("--verb", help="predict, read, manage or admin.")
    ] = None,
    expires: Expires = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, on average.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    daily_rows: Annotated[int | None, typer.Option(help="Rows computed a day.")] = None,
    daily_bytes: Annotated[int | None, typer.Option(help="Bytes of a day's traffic.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, by default to predict and read every line. It is shown this once."""
    scopes = [f"{v}:{name}" for v in verbs or ("predict", "read") for name in lines or ("*",)]
    limits = {
        "rate": rate, "burst": burst, "daily_rows": daily_rows, "daily_bytes": daily_bytes,
    }  # fmt: skip
    wanted = {"tenant": tenant, "scopes": scopes, "limits": limits, "expires": _text(expires)}
    found = _served("POST", "/v1/keys", wanted)
    show(as_json, found, lambda: _card(found))


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List all keys, also those that expired or were revoked; never their secrets."""
    found = _served("GET", "/v1/keys")
    rows = [
        {
            "id": key["id"],
            "tenant": key["tenant"],
            "scopes": key["scopes"],
            "counts until": "revoked" if key["revoked"] else key["expires"] or "it is revoked",
            "limits": key["limits"],
        }
        for key in found["keys"]
    ]
    show(as_json, found, lambda: table(rows))


@app.command()
def rotate(
    key: KeyId,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for which the old secret still counts.")
    ] = 3600,
    expires: Expires = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret; it keeps its id, scopes, limits, usage and, if none is given, end.

    The local stack's own key is replaced in its file too.
    """
    from deployments.local.model_server import FIRST_KEY
    from deployments.local.stack import home

    found = _served("POST", f"/v1/keys/{key}/rotate", {"grace": grace, "expires": _text(expires)})
    file = home() / FIRST_KEY
    if file.exists() and file.read_text().startswith(f"mm_{key}_"):
        from models.files import write

        write(file, found["key"].encode())
    show(as_json, found, lambda: _card(found))


@app.command()
def revoke(key: KeyId, as_json: AsJson = False) -> None:
    """No longer let a key in, from now on and for good."""
    found = _served("POST", f"/v1/keys/{key}/revoke", {})
    show(as_json, found, lambda: _card(found))


@reports.command()
def usage(
    days: Annotated[int, typer.Option(min=1, max=366, help="Today and the days before.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Requests, rows and bytes of every day, key and line; `*` is what a rate refused."""
    found = _served("GET", f"/v1/usage?days={days}")
    show(as_json, found, lambda: table(found["usage"]))


@reports.command()
def audit(
    head: Annotated[
        str | None, typer.Option(help="The digest printed by an earlier check: is it still there?")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every control action, with the proof that none was altered, dropped or moved."""
    from deployments.serving.audit import check

    entries: list[dict[str, Any]] = []
    while page := _served("GET", f"/v1/audit?after={len(entries)}")["entries"]:
        entries += page
    count, last = check(entries, head)
    shown = [
        {
            "at": datetime.datetime.fromtimestamp(e["at"], datetime.UTC).isoformat(" ", "seconds"),
            **{name: e[name] for name in ("actor", "action", "target", "detail")},
        }
        for e in entries
    ]
    show(as_json, {"entries": entries, "count": count, "head": last}, lambda: table(shown))
    if not as_json:
        print(f"{count} entries, unbroken; head {last}")


def _served(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    from deployments.local.stack import SERVER, STORE, stack

    with stack(STORE, SERVER):
        return ask(method, path, body)


def _card(found: dict[str, Any]) -> None:
    # Not a table: a terminal would break the key into two lines.
    for name, value in found.items():
        print(f"{name:8} {' '.join(value) if isinstance(value, list) else value}")


def _text(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
