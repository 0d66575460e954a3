"""The model server as runs and commands ask it: who serves, load this, put that into production."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson

from models.digests import Digest

ENDPOINT_SETTING = "MODELMINT_ENDPOINT"
KEY_SETTING = "MODELMINT_API_KEY"
JSON = {"content-type": "application/json"}


class DeploymentError(RuntimeError):
    """The server does not serve the version; the one before goes on serving."""


class ServerAwayError(DeploymentError):
    """The server does not answer, or the store does not answer the server: try again later."""


def endpoint() -> str:
    """The address of the model server; raises DeploymentError when none is named."""
    url = os.environ.get(ENDPOINT_SETTING, "").rstrip("/")
    if not url:
        raise DeploymentError(f"{ENDPOINT_SETTING} is not set: start a model server and name it")
    return url


@contextmanager
def connected() -> Iterator[httpx.Client]:
    """A client of the model server; raises DeploymentError when none is named."""
    with httpx.Client(base_url=endpoint(), timeout=60, headers=authorization()) as client:
        yield client


def authorization() -> dict[str, str]:
    """The header that shows the model server our key, the one MODELMINT_API_KEY holds."""
    key = os.environ.get(KEY_SETTING, "")
    return {"authorization": f"Bearer {key}"} if key else {}


def settle(client: httpx.Client, line: str) -> None:
    """Have the server record what it put into production by itself; raises ServerAwayError."""
    left = post(client, f"/v1/lines/{line}/record", {})["unrecorded"]
    if left:
        raise ServerAwayError(
            f"{left} changes of production are not in the promotion record yet, since the store"
            " does not answer the model server: see its log"
        )


def load(client: httpx.Client, line: str, number: int, digest: Digest, source: str) -> str:
    """Have the server prove and load a version; returns who we are to it."""
    parameters = {"version": str(number), "digest": digest, "source": source}
    path = f"/v2/repository/models/{line}/load"
    return str(post(client, path, {"parameters": parameters})["by"])


def serving(client: httpx.Client, line: str) -> int:
    """The version that answers when none is named; 0 while there is none."""
    try:
        answer = client.get(f"/v2/models/{line}")
    except httpx.HTTPError as error:
        raise _silent(client, error) from None
    if answer.status_code in (401, 403):
        raise DeploymentError(
            f"the model server at {client.base_url} does not let us in: set {KEY_SETTING} to a key"
            f" that may read, predict and manage {line}: {answer.text}"
        )
    return int(answer.headers["modelmint-version"]) if answer.status_code == 200 else 0


def post(client: httpx.Client, path: str, body: dict[str, Any] | bytes, headers: Any = None) -> Any:
    """What it answers; raises DeploymentError for a refusal, ServerAwayError for silence."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return _asked(client, "POST", path, content=content, headers={**JSON, **(headers or {})})


def get(client: httpx.Client, path: str) -> Any:
    """What it answers; raises as `post` does."""
    return _asked(client, "GET", path)


def _asked(client: httpx.Client, method: str, path: str, **request: Any) -> Any:
    try:
        answer = client.request(method, path, **request)
    except httpx.HTTPError as error:
        raise _silent(client, error) from None
    if answer.status_code >= 400:
        # A proxy's word for a server that is not there, and the server's own while it starts.
        away = answer.status_code in (502, 503, 504)
        raise (ServerAwayError if away else DeploymentError)(
            f"{path}: the model server says {answer.status_code}: {answer.text}"
        )
    return answer.json() if answer.content else {}


def _silent(client: httpx.Client, error: httpx.HTTPError) -> ServerAwayError:
    return ServerAwayError(f"the model server at {client.base_url} does not answer: {error}")
