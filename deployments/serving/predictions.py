"""Routes that compute: `infer` of the Open Inference Protocol v2, predictions and explanations.

Small requests to quick networks are answered on the event loop, everything else in threads, so that
nothing waits.
"""

import base64
import time
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import allow
from deployments.serving.capture import Capture
from deployments.serving.explain import question
from deployments.serving.http import Body, as_json, deadline, header, media_type, request_id
from deployments.serving.inference import Call, Found, Inference, in_thread
from deployments.serving.protocol import BINARY, HEADER_LENGTH, JSON, ProtocolError, parse, render
from deployments.serving.session import Served
from deployments.serving.traffic import Traffic

INLINE_BYTES = 65_536
"""Largest request parsed on the event loop: about a millisecond of JSON."""


class Predictions:
    """Answers of the versions that `traffic` chooses; `capture` is given what was answered."""

    def __init__(
        self, inference: Inference, traffic: Traffic, capture: Capture | None, body: Body
    ) -> None:
        self._inference, self._traffic, self._capture = inference, traffic, capture
        self._body = body

    def routes(self) -> list[Route]:
        """Those of `infer` first: routes are tried in order."""
        found: list[Route] = []
        for version in ("", "/versions/{version}"):
            model, line = "/v2/models/{name}" + version, "/v1/lines/{name}" + version
            found.insert(0, Route(f"{model}/infer", self.infer, methods=["POST"]))
            found.append(Route(f"{line}/predict", self.predict, methods=["POST"]))
            found.append(Route(f"{line}/explain", self.explain, methods=["POST"]))
        return found

    async def infer(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        if media_type(request) not in (JSON, BINARY):
            raise ProtocolError(415, f"the content type must be {JSON} or {BINARY}", "media_type")
        start, call = time.perf_counter(), self._call(request, served)
        body = await self._body(request)
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
        body = await self._body(request)
        # Never inline: a small file can hold an image of millions of pixels.
        tensors, rows = await self._inference.read(call, body, media_type(request))
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
        body = await self._body(request)
        tensors, rows = await self._inference.read(call, body, media_type(request))
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

    def _call(self, request: Request, served: Served) -> Call:
        due = deadline(request, self._inference.seconds)
        store = "no-store" not in (header(request, b"cache-control") or "")
        return Call(request.state.key, served, 0, due, store)

    async def _served(self, request: Request) -> Served:
        """The version that answers this request from here to its end, whatever is promoted."""
        served = await self._traffic.choose(request)
        request.state.headers = served.headers
        return served


def _headers(request: Request, served: Served, found: Found) -> dict[str, str]:
    headers = served.headers | {"x-request-id": request_id(request)}
    if found.hit is not None:
        headers["modelmint-cache"] = "hit" if found.hit else "miss"
    return headers


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}
