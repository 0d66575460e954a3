"""Routes that compute: `infer` of the Open Inference Protocol v2, predictions and explanations.

Small requests to quick networks are answered on the event loop, everything else in threads, so that
nothing waits. A line that writes texts may be answered event by event.
"""

import base64
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving.access import allow
from deployments.serving.capture import Capture
from deployments.serving.events import EVENTS, event
from deployments.serving.explain import question
from deployments.serving.http import (
    INLINE_BYTES,
    Body,
    as_json,
    deadline,
    header,
    hurried,
    may_store,
    media_type,
    request_id,
    take_id,
)  # fmt: skip
from deployments.serving.inference import CACHE, Call, Found, Inference, in_thread
from deployments.serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    JSON,
    InferRequest,
    ProtocolError,
    Tensors,
    checked,
    json_size,
    render,
    unpacked,
)  # fmt: skip
from deployments.serving.session import Served
from deployments.serving.telling import tell
from deployments.serving.traffic import Traffic
from deployments.serving.writing import Text, Writing, Written, texts
from models.generation import Step
from models.language import NextToken


class Predictions:
    """Answers of the versions that `traffic` chooses; `capture` is given what was answered."""

    def __init__(
        self,
        inference: Inference,
        writing: Writing,
        traffic: Traffic,
        capture: Capture | None,
        body: Body,
    ) -> None:
        self._inference, self._traffic, self._capture = inference, traffic, capture
        self._writing, self._body = writing, body

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
        start, call = time.perf_counter(), asking(request, served, self._inference.seconds)
        body = await self._body(request)
        call = call._replace(size=len(body))
        with self._inference.metered(call):
            call, asked = await self._asked(request, call, body)
        if asked.seconds is not None:
            call = call.within(asked.seconds - (time.perf_counter() - start))
        served = call.served
        found = await self._inference.run(call, asked.tensors)
        content, json_length = render(asked, served.line, served.number, found.outputs)
        self._inference.answered(call, "infer", start, asked.rows, len(content))
        if self._capture is not None and call.store:
            self._capture.take(served, asked.tensors)
        headers = _headers(served, found)
        mirrored = self._traffic.mirror(served, asked.tensors)
        if json_length is None:
            return Response(content, headers=headers, media_type=JSON, background=mirrored)
        headers[HEADER_LENGTH] = str(json_length)
        return Response(content, headers=headers, media_type=BINARY, background=mirrored)

    async def _asked(self, request: Request, call: Call, body: bytes) -> tuple[Call, InferRequest]:
        """What `infer` is asked; a trial may give the request's id to another version."""
        length = header(request, HEADER_LENGTH.encode())
        if json_size(body, length) > INLINE_BYTES:
            asked = await self._inference.parse(call, body, length)
            again = await self._again(request, call, asked.id)
            if again.served is not call.served:
                asked = await self._inference.parse(again, body, length)
            return again, asked
        small = len(body) <= INLINE_BYTES
        opened = unpacked(body, length)
        call = await self._again(request, call, opened.id)
        check = partial(checked, opened, call.served.inputs, call.served.outputs)
        return call, check() if small else await in_thread(check, call.deadline)

    async def _again(self, request: Request, call: Call, inside: str | None) -> Call:
        if take_id(request, inside) and "trial" in request.scope["state"]:
            return call._replace(served=await self._served(request))
        return call

    async def predict(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        start, call = time.perf_counter(), asking(request, served, self._inference.seconds)
        body = await self._body(request)
        call = call._replace(size=len(body))
        with self._inference.metered(call):
            # Never inline: a small file can hold an image of millions of pixels.
            tensors, rows = await self._inference.read(call, body, media_type(request))
        if served.signature.objective.steps:
            return await self._continue(request, call, start, tensors)
        found = await self._inference.run(call, tensors)
        answer = _identity(served) | {"predictions": served.answers(found.outputs)}
        answered = as_json(answer, headers=_headers(served, found))
        self._inference.answered(call, "predict", start, rows, len(answered.body))
        if self._capture is not None and call.store:
            self._capture.take(served, tensors)
        kind, inference = media_type(request), self._inference

        def read(other: Served) -> Tensors:
            asked = inference.shadow_decoders.read(other, body, kind, inference.seconds)
            return asked.result()[0]

        answered.background = self._traffic.mirror(served, tensors, read, len(body))
        return answered

    async def _continue(
        self, request: Request, call: Call, start: float, tensors: Tensors
    ) -> Response:
        [text] = texts(tensors)

        def done(steps: list[list[Step]], size: int) -> None:
            rows = text.read + len(steps[0])
            self._inference.answered(call, "predict", start, rows, size)
            if self._capture is not None and call.store:
                self._capture.take(call.served, tensors)

        return await tell(
            request,
            self._writing.write(call, [text]),
            1,
            _Continuation(request_id(request), call.served, text),
            call.served.headers,
            text.sampling.stream or EVENTS in (header(request, b"accept") or ""),
            done,
        )

    async def explain(self, request: Request) -> Response:
        allow(request, "predict", request.path_params["name"])
        served = await self._served(request)
        start, call = time.perf_counter(), asking(request, served, self._inference.seconds)
        body = await self._body(request)
        call = call._replace(size=len(body))
        with self._inference.metered(call):
            tensors, rows = await self._inference.read(call, body, media_type(request))
            if rows != 1:
                raise ProtocolError(400, f"one row is explained at a time, not {rows}")
            asked = question(served, tensors, request.query_params.get("label"))
        found = await self._inference.run_chunks(call, asked.chunks, asked.rows)
        output = found[served.outputs[0].name]
        if np.isnan(output).any():
            raise ProtocolError(422, "the model gives no number for this input", "not_finite")
        explanation = await in_thread(partial(asked.explain, output), call.deadline)
        answer = _identity(served) | explanation
        answered = as_json(answer, headers=served.headers)
        if header(request, b"accept") == "image/png" and "png" in explanation:
            png = base64.b64decode(explanation["png"])
            answered = Response(png, headers=served.headers, media_type="image/png")
        self._inference.answered(call, "explain", start, asked.rows, len(answered.body))
        return answered

    async def _served(self, request: Request) -> Served:
        """The version that answers this request from here to its end, whatever is promoted."""
        served = await self._traffic.choose(request)
        request.state.headers = served.headers
        return served


def asking(request: Request, served: Served, seconds: float) -> Call:
    """What a request asks of a version, its size not yet known; the answer is due in `seconds`.

    Raises ProtocolError 400 for a wrong deadline.
    """
    due = deadline(request, seconds)
    return Call(request.state.key, served, 0, due, may_store(request), hurried(request))


def _headers(served: Served, found: Found) -> dict[str, str]:
    headers = {**served.headers}
    if found.hit is not None:
        headers[CACHE] = "hit" if found.hit else "miss"
    return headers


def _identity(served: Served) -> dict[str, Any]:
    return {"line": served.line, "version": served.number, "digest": served.digest}


class _Continuation(NamedTuple):
    """A text and what is told of it; as events a `piece` again and again, then the `answer`."""

    identity: str
    served: Served
    text: Text

    def whole(self, steps: list[list[Step]]) -> dict[str, Any]:
        objective = self.served.signature.objective
        assert isinstance(objective, NextToken)
        answer = objective.written(steps[0], self.text.sampling)
        return _identity(self.served) | {
            "predictions": [answer | {"prompt_tokens": self.text.read}]
        }

    def part(self, written: Written) -> bytes:
        piece = "".join(step.text for step in written.steps)
        return event({"text": piece}, "piece") if piece else b""

    def last(self, steps: list[list[Step]]) -> bytes:
        return event(self.whole(steps), "answer")

    def refused(self, error: ProtocolError) -> bytes:
        told = {"error": error.message, "code": error.code, "request_id": self.identity}
        return event(told, "error")
