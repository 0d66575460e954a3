"""Routes that change what is served: load, unload, promote. Each is logged before it is done."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import Access, allow
from deployments.serving.http import as_json, as_object, parameters, texts
from deployments.serving.repository import Repository
from deployments.serving.session import Served

T = TypeVar("T")


class Control:
    """Changes of a repository over HTTP; `body` reads a request's body within limits."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        body: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self._repository, self._access, self._body = repository, access, body
        # Changes wait for each other anyway: they must not fill the threads that requests run in.
        self._one_change = anyio.CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """Those of Triton's repository extension, and our own below `/v1`."""
        post = ["POST"]
        return [
            Route("/v2/repository/models/{name}/load", self.load, methods=post),
            Route("/v2/repository/models/{name}/unload", self.unload, methods=post),
            Route("/v1/lines/{name}/promote", self.promote, methods=post),
        ]

    async def load(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = parameters(await self._body(request))
        wanted = texts(given, ("version", "digest"), ("source",))
        args = name, wanted["version"], wanted["digest"], wanted.get("source")
        change = partial(self._repository.load, *args)
        return as_json(_identity(await self._change(request, "load", name, wanted, change)))

    async def unload(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = parameters(await self._body(request))
        given.pop("unload_dependents", None)  # Triton's clients always send it
        wanted = texts(given, ("version",))
        number = wanted["version"]
        change = partial(self._repository.unload, name, number)
        await self._change(request, "unload", name, wanted, change)
        return as_json({"line": name, "version": number})

    async def promote(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        wanted = texts(as_object(await self._body(request)), ("version",))
        change = partial(self._repository.set_default, name, wanted["version"])
        return as_json(_identity(await self._change(request, "promote", name, wanted, change)))

    async def _change(
        self,
        request: Request,
        action: str,
        line: str,
        wanted: dict[str, str],
        change: Callable[[], T],
    ) -> T:
        def recorded() -> T:
            self._access.record(request, action, line, **wanted)
            return change()

        return await anyio.to_thread.run_sync(recorded, limiter=self._one_change)


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}
