"""Routes about callers: their keys, what they used, and the log of what was done."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio.to_thread
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import Access, allow
from deployments.serving.http import Body, as_json, as_object
from deployments.serving.keys import EVERYTHING, ApiKey, Grant, refused
from deployments.serving.openai_protocol import COMPLETION
from deployments.serving.protocol import ProtocolError

LARGEST_PAGE = 1000
GRACE_SECONDS = 3600.0
"""How long a rotated secret still counts, so that callers can be told of the new one."""


class Accounts:
    """Keys, usage and audit log over HTTP; `body` reads a request's body within limits."""

    def __init__(self, access: Access, body: Body) -> None:
        self._access, self._body = access, body

    def routes(self) -> list[Route]:
        """All of them below `/v1`."""
        return [
            Route("/v1/keys", self.list_keys, methods=["GET"]),
            Route("/v1/keys", self.create, methods=["POST"]),
            Route("/v1/keys/{id}/rotate", self.rotate, methods=["POST"]),
            Route("/v1/keys/{id}/revoke", self.revoke, methods=["POST"]),
            Route("/v1/usage", self.usage, methods=["GET"]),
            Route("/v1/audit", self.audit, methods=["GET"]),
            Route("/v1/requests/{id}", self.requests, methods=["GET"]),
        ]

    async def list_keys(self, request: Request) -> Response:
        allow(request, "admin")
        return as_json({"keys": [described(key) for key in self._access.keys.all()]})

    async def create(self, request: Request) -> Response:
        allow(request, "admin")
        given = _known(
            as_object(await self._body(request)), "tenant", "scopes", "expires", "limits"
        )
        expires = _moment(given.pop("expires", None))
        try:  # all of it before it is recorded
            grant = Grant.model_validate(given)
        except ValidationError as error:
            raise refused(error) from None
        detail = {"scopes": list(grant.scopes), "expires": _shown(expires)}
        make = partial(self._access.keys.create, grant.tenant, grant.scopes, expires, grant.limits)
        return await self._changed(request, "create key", grant.tenant, detail, make)

    async def rotate(self, request: Request) -> Response:
        allow(request, "admin")
        given = _known(as_object(await self._body(request)), "grace", "expires")
        grace = given.get("grace", GRACE_SECONDS)
        if type(grace) not in (int, float) or not 0 <= grace <= 30 * 86_400:
            raise ProtocolError(400, "grace must be a number of seconds, at most thirty days")
        identity, expires = request.path_params["id"], _moment(given.get("expires"))
        detail = {"grace": grace, "expires": _shown(expires)}
        make = partial(self._access.keys.rotate, identity, grace, expires)
        return await self._changed(request, "rotate key", identity[:20], detail, make)

    async def revoke(self, request: Request) -> Response:
        allow(request, "admin")
        identity = request.path_params["id"]

        def change() -> ApiKey:
            self._access.record(request, "revoke key", identity[:20])
            return self._access.keys.revoke(identity)

        return as_json(described(await anyio.to_thread.run_sync(change)))

    async def usage(self, request: Request) -> Response:
        """A key sees what it used itself, one with `admin:*` what all did."""
        key: ApiKey = request.state.key
        days = _whole(request, "days", 7, 366)
        found = await anyio.to_thread.run_sync(self._access.ledger.usage, days)
        if not key.allows("admin", "*"):
            found = [one for one in found if one["key"] == key.id]
        tenants = {one.id: one.tenant for one in self._access.keys.all()}
        rows = [{**one, "tenant": tenants.get(one["key"], "")} for one in found]
        return as_json({"usage": rows})

    async def audit(self, request: Request) -> Response:
        allow(request, "admin")
        after = _whole(request, "after", 0, 10**15)
        read = partial(self._access.audit.read, after, LARGEST_PAGE)
        return as_json({"entries": await anyio.to_thread.run_sync(read)})

    async def requests(self, request: Request) -> Response:
        """What answered a request, or a completion; a key sees its own, one with `admin:*` all."""
        key: ApiKey = request.state.key
        who, every = (key.tenant, key.id), key.allows("admin", "*")
        identity = request.path_params["id"]
        found = await self._access.journal.look_up(identity, who, every)
        if not found and identity.startswith(COMPLETION):
            inner = identity.removeprefix(COMPLETION)
            found = await self._access.journal.look_up(inner, who, every)
        return as_json({"requests": found})

    async def _changed(
        self,
        request: Request,
        action: str,
        target: str,
        detail: dict[str, Any],
        make: Callable[[], tuple[ApiKey, str]],
    ) -> Response:
        def change() -> tuple[ApiKey, str]:
            self._access.record(request, action, target, **detail)
            return make()

        key, token = await anyio.to_thread.run_sync(change)
        # The one time the secret is shown; no proxy may keep it.
        return as_json({"key": token, **described(key)}, headers={"cache-control": "no-store"})


def described(key: ApiKey) -> dict[str, Any]:
    """A key for people: everything but hashes."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": list(EVERYTHING if set(key.scopes) == set(EVERYTHING) else key.scopes),
        "expires": _shown(key.expires),
        "created": _shown(key.created),
        "revoked": _shown(key.revoked),
        "limits": key.limits.model_dump(exclude_none=True),
    }


def _known(given: dict[str, Any], *names: str) -> dict[str, Any]:
    if unknown := sorted(set(given) - set(names)):
        raise ProtocolError(400, f"unknown {', '.join(unknown)[:200]}")
    return given


def _moment(text: Any) -> float | None:
    """Seconds since 1970 of an ISO 8601 date or time, UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        seconds = found.timestamp()
        _shown(seconds)  # in UTC it may be before the first year or behind the last one
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError(400, "expires must be an ISO 8601 date or time") from None
    return seconds


def _shown(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _whole(request: Request, name: str, default: int, largest: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 17 and int(text) <= largest):
        raise ProtocolError(400, f"{name} must be a whole number of at most {largest}")
    return int(text)
