"""Traces for OpenTelemetry: a span a request, joined to the caller's, with decode, queue, compute.

On where OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, names a collector of
OTLP over HTTP; it takes the extra `tracing`. The other variables of OpenTelemetry's SDK count too,
such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER. Without a collector nothing here is imported, and
requests pass through none of it: what is traced are subclasses and wrappers.

Spans hold what the answer's headers say, no key and nothing of a payload, and are of those who
showed a key: others cannot fill the collector.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.serving.batching import Batching, Waiting
from deployments.serving.http import release, request_id
from deployments.serving.inference import Call, Found, Inference, Settings
from deployments.serving.ledger import Ledger
from deployments.serving.protocol import InferRequest, Tensors, count
from deployments.serving.session import Served

TOLD = ("modelmint-model", "modelmint-version", "modelmint-digest", "x-request-id")
"""Headers of an answer that a span repeats."""
CLOSE_SECONDS = 2.0
UNNAMED = "unknown_service"
Rpc = Callable[[Any, Any], Awaitable[Any]]


class Tracing:
    """The tracer of one worker process; `close` sends what is left."""

    def __init__(self) -> None:
        told = Resource.create({SERVICE_VERSION: release()})
        if str(told.attributes.get(SERVICE_NAME, UNNAMED)).startswith(UNNAMED):
            told = told.merge(Resource({SERVICE_NAME: "modelmint"}))
        self._provider = TracerProvider(resource=told, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("modelmint.serving")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send the spans that wait, for two seconds at most: a collector may be away."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)

    def inference(self, ledger: Ledger, settings: Settings) -> Inference:
        """An `Inference` whose work is traced."""
        return _Traced(ledger, settings, self._tracer)

    def watch(self, app: ASGIApp, routes: Sequence[Route]) -> ASGIApp:
        """The application, a span for each of its requests."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            route = next((r.path for r in routes if r.path_regex.match(scope["path"])), "")
            method = scope["method"] if route else "HTTP"
            fields = {str(n, "latin-1"): str(v, "latin-1") for n, v in scope["headers"]}
            with self._span(f"{method} {route}".strip(), fields) as span:
                span.set_attributes({"http.request.method": method, "http.route": route})

                async def noted(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        found = {
                            str(n, "latin-1"): str(v, "latin-1") for n, v in message["headers"]
                        }
                        _tell(span, found | {"x-request-id": request_id(Request(scope))})
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= 500:
                            span.set_status(StatusCode.ERROR)
                    await send(message)

                await app(scope, receive, noted)

        return watched

    def rpc(self, name: str, answer: Rpc, known: Callable[[str | None], bool]) -> Rpc:
        """A method of gRPC, a span for each message of somebody whose key is known."""

        async def traced(asked: Any, receive: Any) -> Any:
            given = asked.request.scope["headers"]
            fields = {str(n, "latin-1"): str(v, "latin-1") for n, v in given}
            if not known(fields.get("authorization")):
                return await answer(asked, receive)
            with self._span(name, fields) as span:
                span.set_attributes({"rpc.system": "grpc", "rpc.method": name.rpartition("/")[2]})
                told = await answer(asked, receive)
                _tell(span, dict(asked.trailers(told.refusal)))
                span.set_attribute("rpc.grpc.status_code", told.status.value[0])
                return told

        return traced

    def _span(self, name: str, fields: Mapping[str, str]) -> Any:
        given = self._propagator.extract(fields)
        # What goes wrong is told by its status: an exception's words may quote a payload.
        return self._tracer.start_as_current_span(
            name, given, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        )


class _Traced(Inference):
    """Spans `decode`, `queue` and `compute` below the request's."""

    def __init__(self, ledger: Ledger, settings: Settings, tracer: Tracer) -> None:
        super().__init__(ledger, settings)
        self._tracer = tracer
        self._batching = _TracedBatching(settings.slots, tracer)

    async def read(self, call: Call, payload: bytes, media_type: str) -> tuple[Tensors, int]:
        with self._span("decode") as span:
            tensors, rows = await super().read(call, payload, media_type)
            span.set_attributes({"modelmint.rows": rows, "modelmint.bytes": len(payload)})
        return tensors, rows

    async def parse(self, call: Call, body: bytes, header_length: str | None) -> InferRequest:
        with self._span("decode") as span:
            asked = await super().parse(call, body, header_length)
            span.set_attributes({"modelmint.rows": asked.rows, "modelmint.bytes": len(body)})
        return asked

    async def run(self, call: Call, tensors: Tensors) -> Found:
        rows = count(tensors)
        if rows > call.served.inline_rows:
            found = await super().run(call, tensors)  # what batches tells more
        else:
            with self._span("compute") as span:
                span.set_attributes({"modelmint.rows": rows, "modelmint.requests": 1})
                found = await super().run(call, tensors)
        if found.hit is not None:
            trace.get_current_span().set_attribute("modelmint.cache", found.hit)
        return found

    def _span(self, name: str) -> Any:
        # Not the words of what goes wrong: they may quote what was sent.
        return self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        )


class _TracedBatching(Batching):
    """Each request of a batch gets its spans; they share the time of computing."""

    def __init__(self, slots: int, tracer: Tracer) -> None:
        super().__init__(slots)
        self._tracer = tracer

    def _origin(self) -> Any:
        return context.get_current(), time.time_ns()

    def _computed(self, served: Served, batch: list[Waiting]) -> list[Any]:
        start = time.time_ns()
        found = super()._computed(served, batch)
        end = time.time_ns()
        told = {"modelmint.rows": sum(w.rows for w in batch), "modelmint.requests": len(batch)}
        for waiting in batch:
            if waiting.origin is None:  # a turn of a text: one of hundreds
                continue
            of, came = waiting.origin
            self._tracer.start_span("queue", of, start_time=came).end(start)
            self._tracer.start_span("compute", of, start_time=start, attributes=told).end(end)
        return found


def _tell(span: Span, headers: Mapping[str, str]) -> None:
    for name in TOLD:
        if name in headers:
            span.set_attribute(name.replace("-", ".", 1), headers[name])
