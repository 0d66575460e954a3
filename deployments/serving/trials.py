"""Routes of versions that are being tried: canary and shadow, their start, end and comparison."""

import time
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import Access, allow
from deployments.serving.http import Body, as_json, as_object
from deployments.serving.keys import refused
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.state import Canary, Shadow
from deployments.serving.traffic import Traffic

KINDS: dict[str, type[Canary] | type[Shadow]] = {"canary": Canary, "shadow": Shadow}
GIVEN = {"canary": {"version", "percent", "tenant", "by"}, "shadow": {"version"}}


class Trials:
    """One canary and one shadow a line, over HTTP; `body` reads a request's body within limits."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        traffic: Traffic,
        body: Body,
    ) -> None:
        self._repository, self._access, self._traffic = repository, access, traffic
        self._body = body
        self._one_change = anyio.CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """All of them below `/v1/lines/{name}`."""
        found = []
        for kind in KINDS:
            path = f"/v1/lines/{{name}}/{kind}"
            found += [
                Route(path, partial(self.show, kind), methods=["GET"]),
                Route(path, partial(self.start, kind), methods=["POST"]),
                Route(f"{path}/end", partial(self.end, kind), methods=["POST"]),
            ]
        return found

    async def show(self, kind: str, request: Request) -> Response:
        """What is tried and what was counted so far."""
        name = request.path_params["name"]
        allow(request, "read", name)
        trial = self._trial(kind, name)
        if trial is None:
            return as_json({"line": name, kind: None})
        return as_json({"line": name, kind: self._described(name, trial)})

    async def start(self, kind: str, request: Request) -> Response:
        """Try a loaded version; a trial of the same kind ends, and its counts with it."""
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = as_object(await self._body(request))
        if unknown := sorted(set(given) - GIVEN[kind]):
            raise ProtocolError(400, f"unknown {', '.join(unknown)[:200]}")
        try:
            trial = KINDS[kind].model_validate(given | {"who": self._access.who(request)})
        except ValidationError as error:
            raise refused(error) from None

        def change() -> None:
            if isinstance(trial, Canary) and trial.tenant is not None:
                self._check_tenant(trial.tenant)
            served = self._repository.wake(name, trial.version)
            if kind == "shadow" and served.signature.objective.steps:
                raise ProtocolError(
                    409,
                    f"{name} writes texts, and two versions never write the same: try a canary",
                    "conflict",
                )
            self._access.record(request, f"start {kind}", name, **given)
            self._repository.try_out(name, kind, trial)
            self._traffic.forget(name, kind, trial)

        await anyio.to_thread.run_sync(change, limiter=self._one_change)
        return as_json({"line": name, kind: self._described(name, trial)})

    async def end(self, kind: str, request: Request) -> Response:
        """End the trial; what was counted goes into the audit log."""
        name = request.path_params["name"]
        allow(request, "manage", name)
        trial = self._trial(kind, name)
        if trial is None:
            raise ProtocolError(404, f"{name} has no {kind}", f"no_{kind}")
        found = self._described(name, trial)

        def change() -> None:
            self._access.record(request, f"end {kind}", name, **found)
            self._repository.try_out(name, kind, None)
            self._traffic.forget(name, kind, None)

        await anyio.to_thread.run_sync(change, limiter=self._one_change)
        return as_json({"line": name, kind: found})

    def _check_tenant(self, tenant: str) -> None:
        """Raises ProtocolError 404 for a tenant that nobody can be: nobody would try anything."""
        now = time.time()
        if not any(k.tenant == tenant and k.counts(now) for k in self._access.keys.all()):
            raise ProtocolError(
                404, f"no key that counts is of tenant {tenant!r}", "unknown_tenant"
            )

    def _trial(self, kind: str, name: str) -> Canary | Shadow | None:
        line = self._repository.line(name)
        return line.canary if kind == "canary" else line.shadow

    def _described(self, name: str, trial: Canary | Shadow) -> dict[str, Any]:
        shown = trial.model_dump(mode="json", exclude={"id"})
        return {**shown, "comparison": self._traffic.compared(name, trial)}
