"""Routes of the model server: the Open Inference Protocol v2, its repository, and predictions.

All but its health is for callers with a key (`access`).

Bare Starlette: on a small network, parsing and routing cost more than computing. Small requests to
quick networks are answered on the event loop, everything else in threads, so that nothing waits.
"""

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deployments.serving.access import Access, allow
from deployments.serving.accounts import Accounts
from deployments.serving.capture import Capture
from deployments.serving.http import (
    as_json,
    as_object,
    media_type,
    on_error,
    parameters,
    read_body,
    request_id,
    texts,
)
from deployments.serving.protocol import BINARY, HEADER_LENGTH, JSON, ProtocolError, parse, render
from deployments.serving.repository import Line, Repository
from deployments.serving.session import Served
from models.tensors import TensorSpec

MAX_BODY = 16_000_000
BODY_SECONDS = 30.0
INLINE_BYTES = 65_536
"""Largest request parsed on the event loop: about a millisecond of JSON."""
T = TypeVar("T")


def create(
    repository: Repository,
    access: Access,
    *,
    max_body: int = MAX_BODY,
    body_seconds: float = BODY_SECONDS,
    capture: Capture | None = None,
) -> ASGIApp:
    """The application over a restored repository, for those whom `access` lets in.

    `max_body` is in bytes; a request's body must arrive whole within `body_seconds`; `capture` is
    given what was answered.
    """
    handlers = dict.fromkeys((ProtocolError, HTTPException, Exception), on_error)
    server = _Server(repository, access, max_body, body_seconds, capture)
    routes = [*server.routes(), *Accounts(access, server.body).routes()]
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return access.guard(app)


class _Server:
    def __init__(
        self, repository: Repository, access: Access, max_body: int, body_seconds: float,
        capture: Capture | None,
    ) -> None:  # fmt: skip
        self._repository, self._access = repository, access
        self._max_body, self._body_seconds = max_body, body_seconds
        self._capture = capture
        # Loads wait for each other anyway: they must not fill the threads that requests run in.
        self._one_change = anyio.CapacityLimiter(1)

    def routes(self) -> list[Route]:
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", self.index, methods=get),
            Route("/v2", self.server_metadata, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/v2/repository/index", self.repository_index, methods=post),
            Route("/v2/repository/models/{name}/load", self.load, methods=post),
            Route("/v2/repository/models/{name}/unload", self.unload, methods=post),
            Route("/v1/lines/{name}/promote", self.promote, methods=post),
        ]
        for version in ("", "/versions/{version}"):
            model, line = "/v2/models/{name}" + version, "/v1/lines/{name}" + version
            routes.insert(0, Route(f"{model}/infer", self.infer, methods=post))  # tried in order
            routes.append(Route(model, self.model_metadata, methods=get))
            routes.append(Route(f"{model}/ready", self.model_ready, methods=get))
            routes.append(Route(f"{line}/predict", self.predict, methods=post))
        return routes

    async def infer(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = self._served(request)
        if media_type(request) not in (JSON, BINARY):
            raise ProtocolError(415, f"the content type must be {JSON} or {BINARY}", "media_type")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError(415, "compressed requests are not supported", "media_type")
        body = await self.body(request)
        header_length = request.headers.get(HEADER_LENGTH)
        read = partial(parse, body, header_length, served.inputs, served.outputs)
        asked = await _call(read, inline=len(body) <= INLINE_BYTES)
        rows = max(len(tensor) for tensor in asked.tensors.values())
        self._access.charge(request, served.line, rows, len(body))
        try:
            compute = partial(served.run, asked.tensors)
            found = await _call(compute, inline=rows <= served.inline_rows)
            content, json_length = render(asked, served.line, served.number, found)
        except BaseException:
            self._access.refund(request, served.line, rows)
            raise
        self._access.answered(request, served.line, len(content))
        if self._capture is not None:
            self._capture.take(served, asked.tensors)
        headers = served.headers | {"x-request-id": request_id(request)}
        if json_length is None:
            return Response(content, headers=headers, media_type=JSON)
        headers[HEADER_LENGTH] = str(json_length)
        return Response(content, headers=headers, media_type=BINARY)

    async def predict(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = self._served(request)
        body = await self.body(request)
        # Never inline: a small file can hold an image of millions of pixels.
        tensors, rows = await _call(partial(served.read, body, media_type(request)), inline=False)
        self._access.charge(request, served.line, rows, len(body))
        try:
            predictions = await _call(partial(served.predict, tensors), inline=False)
        except BaseException:
            self._access.refund(request, served.line, rows)
            raise
        answer = _identity(served) | {"predictions": predictions}
        headers = served.headers | {"x-request-id": request_id(request)}
        answered = as_json(answer, headers=headers)
        self._access.answered(request, served.line, len(answered.body))
        if self._capture is not None:
            self._capture.take(served, tensors)
        return answered

    async def index(self, request: Request) -> Response:
        key = request.state.key
        lines = {
            name: {
                "default": line.default,
                "versions": {number: served.digest for number, served in line.versions.items()},
                "failed": _reasons(line),
            }
            for name, line in self._repository.lines.items()
            if key.allows("read", name)
        }
        return as_json({"name": "modelmint", "protocol": "/v2", "lines": lines})

    async def server_metadata(self, _: Request) -> Response:
        extensions = ["binary_tensor_data", "model_repository"]
        return as_json({"name": "modelmint", "version": _release(), "extensions": extensions})

    async def live(self, _: Request) -> Response:
        return as_json({"live": True})

    async def ready(self, _: Request) -> Response:
        # The socket opens once the state is restored; a line that failed never stops the others.
        # Open to everybody, so it names no line: that is in the index.
        failed = sum(len(line.failed) for line in self._repository.lines.values())
        return as_json({"ready": True, "failed_versions": failed})

    async def model_metadata(self, request: Request) -> Response:
        allow(request, "read", request.path_params["name"])
        served = self._served(request)
        answer = {
            "name": served.line,
            "versions": sorted(self._repository.line(served.line).versions, key=int),
            "platform": "onnxruntime_onnx",
            "inputs": [_described(spec) for spec in served.inputs],
            "outputs": [_described(spec) for spec in served.outputs],
        }
        return as_json(answer, headers=served.headers)

    async def model_ready(self, request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params.get("version")
        allow(request, "read", name)
        line = self._repository.line(name)
        ready = line.ready if number is None else number in line.versions
        answer = {"name": name, "version": number or line.default, "ready": ready}
        return as_json(answer | {"failed": _reasons(line)}, status=200 if ready else 503)

    async def repository_index(self, request: Request) -> Response:
        key = request.state.key
        only_ready = as_object(await self.body(request)).get("ready") is True
        found: list[dict[str, Any]] = []
        for name, line in self._repository.lines.items():
            if not key.allows("read", name):
                continue
            for number, served in line.versions.items():
                found.append(_listed(name, number, line, served.digest, "READY"))
            for number, failed in {} if only_ready else line.failed.items():
                one = _listed(name, number, line, failed.digest, "UNAVAILABLE")
                found.append(one | {"reason": failed.reason})
        return as_json(found)

    async def load(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = parameters(await self.body(request))
        wanted = texts(given, ("version", "digest"), ("source",))
        args = name, wanted["version"], wanted["digest"], wanted.get("source")
        change = partial(self._repository.load, *args)
        return as_json(_identity(await self._change(request, "load", name, wanted, change)))

    async def unload(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        given = parameters(await self.body(request))
        given.pop("unload_dependents", None)  # Triton's clients always send it
        wanted = texts(given, ("version",))
        number = wanted["version"]
        change = partial(self._repository.unload, name, number)
        await self._change(request, "unload", name, wanted, change)
        return as_json({"line": name, "version": number})

    async def promote(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "manage", name)
        wanted = texts(as_object(await self.body(request)), ("version",))
        change = partial(self._repository.set_default, name, wanted["version"])
        return as_json(_identity(await self._change(request, "promote", name, wanted, change)))

    def _served(self, request: Request) -> Served:
        """The version that answers this request from here to its end, whatever is promoted."""
        path = request.path_params
        served = self._repository.get(path["name"], path.get("version"))
        request.state.headers = served.headers
        return served

    async def body(self, request: Request) -> bytes:
        """The whole body within the limits of this server; raises ProtocolError."""
        return await read_body(request, self._max_body, self._body_seconds)

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


async def _call(work: Callable[[], T], *, inline: bool) -> T:
    return work() if inline else await anyio.to_thread.run_sync(work)


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _listed(name: str, number: str, line: Line, digest: str, state: str) -> dict[str, Any]:
    default = number == line.default
    found = {"name": name, "version": number, "state": state, "reason": ""}
    return found | {"digest": digest, "default": default}


def _reasons(line: Line) -> dict[str, str]:
    return {number: failed.reason for number, failed in line.failed.items()}


def _release() -> str:
    try:
        return importlib.metadata.version("modelmint")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
