"""Which version answers a request, and what is learned of a version that is being tried.

A canary answers a share of the requests that name no version, or a tenant's. A shadow computes
requests again after they were answered; its answers are compared and go to nobody. What either
does is counted over all workers.
"""

import logging
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.serving.counters import Counters
from deployments.serving.disk import written
from deployments.serving.http import request_id
from deployments.serving.journal import Journal
from deployments.serving.keys import ApiKey
from deployments.serving.protocol import Tensors
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from deployments.serving.shadowing import SHADOW, Mirrored, Read, Shadowing, told
from deployments.serving.state import Canary, Shadow

ROLES = ("production", "canary")
COUNTED = ("requests", "refused", "failed", "nanoseconds", "slowest_nanoseconds")
CANARY = tuple(f"{role}_{name}" for role in ROLES for name in COUNTED)
Message = MutableMapping[str, Any]
_log = logging.getLogger("modelmint.serving")


class Traffic:
    """Routes requests to versions and counts what became of them; one a worker."""

    def __init__(self, repository: Repository, journal: Journal, folder: Path) -> None:
        self._repository, self._journal, self._folder = repository, journal, folder
        self._one_wake = anyio.CapacityLimiter(1)
        self._open: dict[str, tuple[str, Counters]] = {}
        self._opening = threading.Lock()
        self._uncounted: set[str] = set()
        self._shadowing = Shadowing(self._add, self._shadows)

    async def choose(self, request: Request) -> Served:
        """The version that answers; raises ProtocolError 404 or 503.

        The same one for the same request id, or the same key, for as long as the canary lasts.
        """
        name, number = request.path_params["name"], request.path_params.get("version")
        if number is None:
            line = self._repository.line(name)
            if line.canary is not None:
                key: ApiKey = request.state.key
                unit = key.id if line.canary.by == "key" else request_id(request)
                request.state.trial = line.canary
                if line.canary.takes(key.tenant, unit) and line.canary.version in line.versions:
                    return line.versions[line.canary.version]
        elif number in self._repository.line(name).idle:
            # Opening takes a while, and nobody else is to wait for it.
            wake = partial(self._repository.wake, name, number)
            return await anyio.to_thread.run_sync(wake, limiter=self._one_wake)
        return self._repository.get(name, number)

    def watch(self, app: ASGIApp) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The application, its answers noted in the journal and counted for the canary."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start = time.perf_counter_ns()

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    state = scope.get("state", {})
                    if "headers" in state:  # a version was to answer
                        request_id(Request(scope))
                        self.note(state, message["status"], time.perf_counter_ns() - start)
                await send(message)

            await app(scope, receive, noted)
            state = scope.get("state", {})
            if "broken" in state and "trial" in state:
                self._count_broken(state)

        return watched

    def note(self, state: dict[str, Any], status: int, spent: int) -> None:
        """Put an answer into the journal and count it for a trial; `spent` is in nanoseconds."""
        headers = state["headers"]
        self._journal.add(
            at=time.time(),
            request=state.get("request_id", ""),
            key=state["key"].id,
            line=headers["modelmint-model"],
            version=headers["modelmint-version"],
            digest=headers["modelmint-digest"],
            status=status,
            ms=spent / 1e6,
        )
        if "trial" in state:
            self._count(headers, state["trial"], status, spent)

    def mirror(
        self, served: Served, tensors: Tensors, read: Read | None = None, kept: int = 0
    ) -> BackgroundTask | None:
        """What has the line's shadow compute a request too, once that was answered.

        `read` makes tensors of what a person sent, of which it keeps so many bytes: another version
        may have another vocabulary.
        """
        line = self._repository.lines.get(served.line)
        if line is None or line.shadow is None or served.number != line.default:
            return None
        other = line.versions.get(line.shadow.version)
        if other is None:
            return None
        if other.signature.features == served.signature.features:
            read, kept = None, 0
        # What only an objective reads, such as how to sample, is no input of a network.
        inputs = {spec.name: tensors[spec.name] for spec in served.inputs}
        size = kept + sum(tensor.nbytes for tensor in inputs.values())
        mirrored = Mirrored(served, other, line.shadow, inputs, read, size)
        return BackgroundTask(self._shadowing.offer, mirrored)

    def close(self) -> None:
        """Compute nothing more for a shadow."""
        self._shadowing.close()

    def compared(self, line: str, trial: Canary | Shadow) -> dict[str, Any]:
        """What was counted of a trial."""
        with written(self._path(line, trial)):
            found = self._counters(line, trial).read()
        return _canary(found) if isinstance(trial, Canary) else told(found)

    def forget(self, line: str, kind: str, but: Canary | Shadow | None) -> None:
        """Drop what was counted of trials that have ended."""
        kept = self._path(line, but) if but else None
        for path in self._folder.glob(f"{line}-{kind}-*.counters"):
            if path != kept:
                path.unlink(missing_ok=True)

    def _count(self, headers: dict[str, str], trial: Canary, status: int, spent: int) -> None:
        line = headers["modelmint-model"]
        role = "canary" if headers["modelmint-version"] == trial.version else "production"
        changes = {"requests": 1, "nanoseconds": spent}
        if status >= 400:
            changes["failed" if status >= 500 else "refused"] = 1
        added = {f"{role}_{name}": change for name, change in changes.items()}
        self._add(line, trial, added, (f"{role}_slowest_nanoseconds", spent))

    def _count_broken(self, state: dict[str, Any]) -> None:
        """An answer that had begun as a success and was not brought to its end."""
        headers, trial = state["headers"], state["trial"]
        role = "canary" if headers["modelmint-version"] == trial.version else "production"
        what = "failed" if state["broken"] >= 500 else "refused"
        self._add(headers["modelmint-model"], trial, {f"{role}_{what}": 1})

    def _shadows(self, line: str, trial: Shadow) -> bool:
        """Whether the trial goes on."""
        found = self._repository.lines.get(line)
        return found is not None and found.shadow == trial

    def _add(
        self,
        line: str,
        trial: Canary | Shadow,
        added: dict[str, int],
        largest: tuple[str, int] | None = None,
    ) -> None:
        try:
            counters = self._counters(line, trial)
        except OSError as error:  # no answer is to fail for that
            if trial.id not in self._uncounted:
                self._uncounted.add(trial.id)
                _log.error("%s of %s is not counted until it can be: %s", trial.kind, line, error)
            return
        counters.add(**added)
        if largest is not None:
            counters.top(*largest)

    def _counters(self, line: str, trial: Canary | Shadow) -> Counters:
        name = f"{line}-{trial.kind}"
        found = self._open.get(name)
        if found is None or found[0] != trial.id:
            with self._opening:
                names = CANARY if isinstance(trial, Canary) else SHADOW
                found = trial.id, Counters(self._path(line, trial), names)
                self._open[name] = found
        return found[1]

    def _path(self, line: str, trial: Canary | Shadow) -> Path:
        return self._folder / f"{line}-{trial.kind}-{trial.id}.counters"


def _canary(found: dict[str, int]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for role in ROLES:
        requests = found[f"{role}_requests"]
        told[role] = {
            "requests": requests,
            "refused": found[f"{role}_refused"],
            "failed": found[f"{role}_failed"],
            "mean_ms": round(found[f"{role}_nanoseconds"] / max(1, requests) / 1e6, 3),
            "slowest_ms": round(found[f"{role}_slowest_nanoseconds"] / 1e6, 3),
        }
    return told
