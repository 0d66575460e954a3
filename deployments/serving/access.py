"""The door of the server: whoever asks anything but its health shows a key, and is counted."""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.serving.audit import Audit
from deployments.serving.http import on_error, request_id
from deployments.serving.journal import Journal
from deployments.serving.keys import ApiKey, Keys, Verb
from deployments.serving.ledger import Ledger
from deployments.serving.protocol import ProtocolError

OPEN = frozenset(("/v2/health/live", "/v2/health/ready"))
Message = MutableMapping[str, Any]


class Access:
    """Keys, usage, audit log and journal of a server, kept in one private folder."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.audit = Keys(folder), Audit(folder)
        self.ledger, self.journal = Ledger(folder / "usage"), Journal(folder / "requests")

    def guard(self, app: ASGIApp) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The application for those with a key; others get 401 before anything is routed."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in OPEN:
                return await app(scope, receive, send)
            try:
                key = self.keys.authenticate(_authorization(scope))
                self.ledger.admit(key)
            except ProtocolError as error:
                answer = await on_error(Request(scope, receive), error)
                return await answer(scope, receive, send)
            scope.setdefault("state", {})["key"] = key
            return await app(scope, receive, send)

        return guarded

    def who(self, request: Request) -> str:
        """The caller, for people: the tenant and the id of the key."""
        key: ApiKey = request.state.key
        return f"{key.tenant} (key {key.id})"

    def record(self, request: Request, action: str, target: str, **detail: Any) -> None:
        """Put a control action into the audit log, before it is done."""
        key: ApiKey = request.state.key
        self.audit.append(key.id, action, target, request_id(request), **detail)


def allow(request: Request, verb: Verb, line: str = "*") -> ApiKey:
    """The caller's key when it may do this to the line; raises ProtocolError 403.

    It is asked before the line is looked for, so that it tells nobody which lines there are.
    """
    key: ApiKey = request.state.key
    if not key.allows(verb, line):
        raise ProtocolError(403, f"key {key.id} lacks the scope {verb}:{line[:41]}", "forbidden")
    return key


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return str(value, "latin-1")
    return None
