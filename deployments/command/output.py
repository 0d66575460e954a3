"""What every command prints: a table for people, or one JSON object and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

LineName = Annotated[str, typer.Argument(help="Name of a model line; see `modelmint lines`.")]
Number = Annotated[int, typer.Argument(min=1, help="Number of a registered version.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=256, help="Processes of the model server; 1 by default.")
]
Https = Annotated[bool, typer.Option("--https", help="Also answer over TLS, on a port of its own.")]
Certificate = Annotated[
    Path | None,
    typer.Option(exists=True, help="PEM file for --https; by default one made for this machine."),
]
PrivateKey = Annotated[Path | None, typer.Option(exists=True, help="PEM file of its private key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def show(as_json: bool, answer: Any, as_text: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
    else:
        as_text()


def table(rows: list[dict[str, Any]]) -> None:
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


def post(path: str, payload: bytes, media_type: str) -> Any:
    """The model server's answer to a payload; raises as `ask` does."""
    return _asked("POST", path, payload, media_type)


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The model server's answer to a JSON object.

    Raises ConnectionError when it does not answer, PermissionError when it does not let us in, and
    LookupError for any other refusal.
    """
    return _asked(method, path, None if body is None else json.dumps(body).encode())


def _asked(
    method: str, path: str, payload: bytes | None, media_type: str = "application/json"
) -> Any:
    import httpx

    from tasks.server import ENDPOINT_SETTING, authorization

    url = os.environ[ENDPOINT_SETTING] + path
    headers = {"content-type": media_type, **authorization()}
    try:
        answer = httpx.request(method, url, content=payload, headers=headers, timeout=60)
    except httpx.HTTPError as error:
        raise ConnectionError(f"the model server at {url} does not answer: {error}") from None
    if answer.status_code in (401, 403):
        raise PermissionError(f"{url}: {answer.text}: name another key in MODELMINT_API_KEY")
    if answer.status_code != 200:
        raise LookupError(f"{url}: {answer.status_code}: {answer.text}")
    return answer.json()
