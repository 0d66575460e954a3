"""Routes of the model server: the Open Inference Protocol v2, its repository, and predictions.

All but its health is for callers with a key (`access`).

Bare Starlette: on a small network, parsing and routing cost more than computing. Small requests to
quick networks are answered on the event loop, everything else in threads, so that nothing waits.
"""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deployments.serving import metrics
from deployments.serving.access import Access, allow
from deployments.serving.accounts import Accounts
from deployments.serving.capture import Capture
from deployments.serving.control import Control
from deployments.serving.explain import question
from deployments.serving.http import (
    Address,
    as_json,
    as_object,
    deadline,
    header,
    media_type,
    on_error,
    read_body,
    release,
    request_id,
)
from deployments.serving.inference import DEFAULTS, Call, Found, Inference, Settings, in_thread
from deployments.serving.line import Line
from deployments.serving.pages import Pages, with_pages
from deployments.serving.protocol import BINARY, HEADER_LENGTH, JSON, ProtocolError, parse, render
from deployments.serving.recorder import Recorder
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from deployments.serving.traffic import Traffic
from deployments.serving.trials import Trials
from models.tensors import TensorSpec

MAX_BODY = 16_000_000
BODY_SECONDS = 30.0
INLINE_BYTES = 65_536
"""Largest request parsed on the event loop: about a millisecond of JSON."""


def create(
    repository: Repository,
    access: Access,
    recorder: Recorder,
    traffic: Traffic,
    *,
    max_body: int = MAX_BODY,
    body_seconds: float = BODY_SECONDS,
    settings: Settings = DEFAULTS,
    capture: Capture | None = None,
    grpc: Address | None = None,
) -> ASGIApp:
    """The application over a restored repository, for those whom `access` lets in.

    `max_body` is in bytes; a request's body must arrive whole within `body_seconds`; `capture` is
    given what was answered. While it runs, the protocol is also spoken over gRPC at `grpc`.
    """
    handlers = dict.fromkeys((ProtocolError, HTTPException, Exception), on_error)
    inference = Inference(access.ledger, settings)
    server = _Server(repository, inference, traffic, capture, max_body, body_seconds)
    control = Control(repository, access, recorder, server.body)
    accounts = Accounts(access, server.body)
    trials = Trials(repository, access, traffic, server.body)
    routes = [
        *server.routes(),
        *Pages(repository).routes(),
        *control.routes(),
        *trials.routes(),
        *accounts.routes(),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            if grpc is None:
                yield
                return
            from deployments.serving.grpc_server import GrpcServer

            spoken = GrpcServer(repository, access, inference, traffic, capture)
            async with spoken.running(grpc, max_body):
                yield
        finally:
            if capture is not None:
                await anyio.to_thread.run_sync(capture.close)

    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return with_pages(access.guard(traffic.watch(app)), routes)


class _Server:
    def __init__(
        self,
        repository: Repository,
        inference: Inference,
        traffic: Traffic,
        capture: Capture | None,
        max_body: int,
        body_seconds: float,
    ) -> None:
        self._repository, self._inference, self._traffic = repository, inference, traffic
        self._capture, self._max_body, self._body_seconds = capture, max_body, body_seconds

    def routes(self) -> list[Route]:
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", self.index, methods=get),
            Route("/v2", self.server_metadata, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/v2/repository/index", self.repository_index, methods=post),
        ]
        for version in ("", "/versions/{version}"):
            model, line = "/v2/models/{name}" + version, "/v1/lines/{name}" + version
            routes.insert(0, Route(f"{model}/infer", self.infer, methods=post))  # tried in order
            routes.append(Route(model, self.model_metadata, methods=get))
            routes.append(Route(f"{model}/ready", self.model_ready, methods=get))
            routes.append(Route(f"{line}/predict", self.predict, methods=post))
            routes.append(Route(f"{line}/explain", self.explain, methods=post))
        return routes

    async def infer(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        if media_type(request) not in (JSON, BINARY):
            raise ProtocolError(415, f"the content type must be {JSON} or {BINARY}", "media_type")
        start, call = time.perf_counter(), self._call(request, served)
        body = await self.body(request)
        header_length = header(request, HEADER_LENGTH.encode())
        read = partial(parse, body, header_length, served.inputs, served.outputs)
        small = len(body) <= INLINE_BYTES
        asked = read() if small else await in_thread(read, call.deadline)
        found = await self._inference.run(call._replace(size=len(body)), asked.tensors)
        content, json_length = render(asked, served.line, served.number, found.outputs)
        rows = len(next(iter(asked.tensors.values())))
        self._inference.answered(call, "infer", start, rows, len(content))
        if self._capture is not None:
            self._capture.take(served, asked.tensors)
        headers = _headers(request, served, found)
        mirrored = self._traffic.mirror(served, asked.tensors)
        if json_length is None:
            return Response(content, headers=headers, media_type=JSON, background=mirrored)
        headers[HEADER_LENGTH] = str(json_length)
        return Response(content, headers=headers, media_type=BINARY, background=mirrored)

    async def predict(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        start, call = time.perf_counter(), self._call(request, served)
        body = await self.body(request)
        # Never inline: a small file can hold an image of millions of pixels.
        read = partial(served.read, body, media_type(request))
        tensors, rows = await in_thread(read, call.deadline)
        call = call._replace(size=len(body))
        if served.signature.objective.steps:
            found = Found({}, None)
            predictions = await self._inference.respond(call, tensors, rows)
        else:
            found = await self._inference.run(call, tensors)
            predictions = served.answers(found.outputs)
        answer = _identity(served) | {"predictions": predictions}
        answered = as_json(answer, headers=_headers(request, served, found))
        self._inference.answered(call, "predict", start, rows, len(answered.body))
        if self._capture is not None:
            self._capture.take(served, tensors)
        answered.background = self._traffic.mirror(served, tensors)
        return answered

    async def explain(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        start, call = time.perf_counter(), self._call(request, served)
        body = await self.body(request)
        read = partial(served.read, body, media_type(request))
        tensors, rows = await in_thread(read, call.deadline)
        if rows != 1:
            raise ProtocolError(400, f"one row is explained at a time, not {rows}")
        asked = question(served, tensors, request.query_params.get("label"))
        call = call._replace(size=len(body))
        found = await self._inference.run_chunks(call, asked.chunks, asked.rows)
        output = found[served.outputs[0].name]
        explanation = await in_thread(partial(asked.explain, output), call.deadline)
        answer = _identity(served) | explanation
        headers = served.headers | {"x-request-id": request_id(request)}
        answered = as_json(answer, headers=headers)
        if header(request, b"accept") == "image/png" and "png" in explanation:
            png = base64.b64decode(explanation["png"])
            answered = Response(png, headers=headers, media_type="image/png")
        self._inference.answered(call, "explain", start, asked.rows, len(answered.body))
        return answered

    async def index(self, request: Request) -> Response:
        key = request.state.key
        lines = {
            name: {
                "default": line.default,
                "previous": list(line.previous),
                "versions": {number: served.digest for number, served in line.versions.items()},
                "failed": _reasons(line),
                "idle": dict(line.idle),
                **{trial.kind: trial.version for trial in line.trials},
            }
            for name, line in self._repository.lines.items()
            if key.allows("read", name)
        }
        return as_json({"name": "modelmint", "protocol": "/v2", "lines": lines})

    async def server_metadata(self, _: Request) -> Response:
        extensions = ["binary_tensor_data", "model_repository"]
        return as_json({"name": "modelmint", "version": release(), "extensions": extensions})

    async def live(self, _: Request) -> Response:
        return as_json({"live": True})

    async def ready(self, _: Request) -> Response:
        # The socket opens once the state is restored; a line that failed never stops the others.
        # Open to everybody, so it names no line: that is in the index.
        failed = sum(len(line.failed) for line in self._repository.lines.values())
        return as_json({"ready": True, "failed_versions": failed})

    async def model_metadata(self, request: Request) -> Response:
        name = request.path_params["name"]
        allow(request, "read", name)
        wake = partial(self._repository.wake, name, request.path_params.get("version"))
        served = await anyio.to_thread.run_sync(wake)
        answer = {
            "name": served.line,
            "versions": _answering(self._repository.line(name)),
            "platform": "onnxruntime_onnx",
            "inputs": [_described(spec) for spec in served.inputs],
            "outputs": [_described(spec) for spec in served.outputs],
        }
        return as_json(answer, headers=served.headers)

    async def model_ready(self, request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params.get("version")
        allow(request, "read", name)
        line = self._repository.line(name)
        ready = line.ready if number is None else line.answers(number)
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
            for number, digest in line.idle.items():
                one = _listed(name, number, line, digest, "READY")
                found.append(one | {"reason": "out of memory: opened when asked for"})
            for number, failed in {} if only_ready else line.failed.items():
                one = _listed(name, number, line, failed.digest, "UNAVAILABLE")
                found.append(one | {"reason": failed.reason})
        return as_json(found)

    async def metrics(self, request: Request) -> Response:
        allow(request, "read")
        found = await anyio.to_thread.run_sync(metrics.exposition)
        return Response(found, media_type=metrics.CONTENT_TYPE)

    def _call(self, request: Request, served: Served) -> Call:
        due = deadline(request, self._inference.seconds)
        store = "no-store" not in (header(request, b"cache-control") or "")
        return Call(request.state.key, served, 0, due, store)

    async def _served(self, request: Request) -> Served:
        """The version that answers this request from here to its end, whatever is promoted."""
        served = await self._traffic.choose(request)
        request.state.headers = served.headers
        return served

    async def body(self, request: Request) -> bytes:
        """The whole body within the limits of this server; raises ProtocolError."""
        return await read_body(request, self._max_body, self._body_seconds)


def _headers(request: Request, served: Served, found: Found) -> dict[str, str]:
    headers = served.headers | {"x-request-id": request_id(request)}
    if found.hit is not None:
        headers["modelmint-cache"] = "hit" if found.hit else "miss"
    return headers


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _answering(line: Line) -> list[str]:
    return sorted((number for number in line.digests if line.answers(number)), key=int)


def _listed(name: str, number: str, line: Line, digest: str, state: str) -> dict[str, Any]:
    default = number == line.default
    found = {"name": name, "version": number, "state": state, "reason": ""}
    return found | {"digest": digest, "default": default}


def _reasons(line: Line) -> dict[str, str]:
    return {number: failed.reason for number, failed in line.failed.items()}
