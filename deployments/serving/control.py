"""Routes that change what is served: load, unload, promote, roll back.

Each is logged before it is done, and answers once every worker has done it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import Access, allow
from deployments.serving.folder import LINE, matches
from deployments.serving.http import Body, as_json, as_object, parameters, texts
from deployments.serving.protocol import ProtocolError
from deployments.serving.recorder import Recorder
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from models.promotions import Entry

T = TypeVar("T")


class Control:
    """Changes of a repository, over HTTP; `body` reads a request's body within limits."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        recorder: Recorder,
        body: Body,
    ) -> None:
        self._repository, self._access, self._body = repository, access, body
        self._recorder = recorder
        # They wait for each other anyway, and must not fill the threads that requests run in; a
        # rollback waits for no load, which may wait for the store.
        self._one_load, self._one_change = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """Those of Triton's repository extension, and our own below `/v1`."""
        post = ["POST"]
        return [
            Route("/v2/repository/models/{name}/load", self.load, methods=post),
            Route("/v2/repository/models/{name}/unload", self.unload, methods=post),
            Route("/v1/lines/{name}/promote", self.promote, methods=post),
            Route("/v1/lines/{name}/rollback", self.roll_back, methods=post),
            Route("/v1/lines/{name}/record", self.record, methods=post),
        ]

    async def load(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        served = await self.loaded(request, name, parameters(await self._body(request)))
        return as_json(_identity(served) | {"by": self._access.who(request)})

    async def loaded(self, request: Request, name: str, given: Mapping[str, Any]) -> Served:
        """Load what the parameters name, or without any, as Triton's clients ask, what is meant.

        That is the version in production where it is not in memory, else the newest whose folder is
        here and verifies. It is not put into production by that.
        """
        wanted = texts(given, ("version", "digest") if given else (), ("source",))

        def load() -> Served:
            if not wanted:
                wanted["version"], wanted["digest"] = self._repository.meant(name)
            self._record(request, "load", name, wanted)
            named = wanted["version"], wanted["digest"], wanted.get("source")
            return self._repository.load(name, *named)

        return await anyio.to_thread.run_sync(load, limiter=self._one_load)

    async def unload(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = parameters(await self._body(request))
        gone = await self.unloaded(request, name, given)
        found = {"version": gone[0]} if "version" in given else {"versions": gone}
        return as_json({"line": name} | found)

    async def unloaded(self, request: Request, name: str, given: Mapping[str, Any]) -> list[str]:
        """Unload the version the parameters name; without one all that nobody can be waiting for.

        Triton's clients name none and mean all. What is in production, was before or is being tried
        stays: a client that knows no versions is not to end a service, nor its way back.
        """
        # Triton's clients always send it.
        named = {one: value for one, value in given.items() if one != "unload_dependents"}
        wanted = texts(named, (), ("version",))
        change = partial(self._repository.unload, name, wanted.get("version"))
        return await self._change(request, "unload", name, wanted, change)

    async def promote(self, request: Request) -> Response:
        """Put a loaded version into production; `recorded` says that the record has it already."""
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = as_object(await self._body(request))
        wanted = texts(given, ("version",), ("reason", "recorded"))
        entry = None if "recorded" in wanted else self._entry(request, "promote", wanted)
        change = partial(self._repository.set_default, name, wanted["version"], entry)
        return as_json(_identity(await self._change(request, "promote", name, wanted, change)))

    async def roll_back(self, request: Request) -> Response:
        """Put an earlier version back into production, with nothing but what is here."""
        name = request.path_params["name"]
        allow(request, "manage", name)
        wanted = texts(as_object(await self._body(request)), (), ("version", "reason"))
        entry = self._entry(request, "rollback", wanted)
        change = partial(self._repository.roll_back, name, wanted.get("version"), entry)
        served, replaced = await self._change(request, "rollback", name, wanted, change)
        return as_json(_identity(served) | {"replaced": replaced, "by": entry.by})

    async def record(self, request: Request) -> Response:
        """Write into the promotion record, now, what is not there yet."""
        name = request.path_params["name"]
        allow(request, "manage", name)
        _check(name)
        left = await anyio.to_thread.run_sync(self._recorder.record, limiter=self._one_load)
        return as_json({"unrecorded": left})

    def _entry(
        self, request: Request, kind: Literal["promote", "rollback"], wanted: dict[str, str]
    ) -> Entry:
        why = wanted.get("reason", "")
        # The repository fills in which version it is, once it is known which it will be.
        by = self._access.who(request)
        return Entry(number=0, digest="0" * 64, kind=kind, by=by, why=why)

    async def _change(
        self,
        request: Request,
        action: str,
        line: str,
        wanted: dict[str, str],
        change: Callable[[], T],
    ) -> T:
        def recorded() -> T:
            self._record(request, action, line, wanted)
            return change()

        return await anyio.to_thread.run_sync(recorded, limiter=self._one_change)

    def _record(self, request: Request, action: str, line: str, wanted: dict[str, str]) -> None:
        _check(line)
        self._access.record(request, action, line, **wanted)


def _check(line: str) -> None:
    """Raises ProtocolError 400 for what can name no line, also none this server knows not yet."""
    if not matches(LINE, line):
        raise ProtocolError(400, f"name must have the form {LINE}", "bad_name")


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}
