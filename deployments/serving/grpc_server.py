"""The Open Inference Protocol v2 over gRPC: the same checks, keys, limits and batching as HTTP.

A caller's key is in the metadata, `authorization: Bearer mm_...`. Outputs are raw contents, as
Triton's are. `open_inference_grpc.proto` is the protocol's own (KServe, Apache-2.0); the module
beside it is made by

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. open_inference_grpc.proto

with a protoc no newer than the oldest protobuf that is to run it.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from deployments.serving import metrics
from deployments.serving import open_inference_grpc_pb2 as pb
from deployments.serving.access import Access
from deployments.serving.app import Grpc
from deployments.serving.elements import check_shape, from_binary, from_json, pack
from deployments.serving.http import REQUEST_ID, release
from deployments.serving.inference import Call, Inference
from deployments.serving.keys import ApiKey, Verb
from deployments.serving.protocol import ProtocolError, Tensors, Wanted, complete, declared
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from deployments.serving.state import Canary
from deployments.serving.traffic import Traffic
from models.tensors import TensorSpec

SERVICE = "inference.GRPCInferenceService"
GRACE_SECONDS = 5.0
OPEN = frozenset(("ServerLive", "ServerReady"))
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
    422: grpc.StatusCode.FAILED_PRECONDITION, 429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""The field that holds a datatype's values; FP16 has raw contents only."""
_log = logging.getLogger("modelmint.serving")


class GrpcServer:
    """The protocol's service at an address, within the event loop that runs it."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        inference: Inference,
        traffic: Traffic,
        largest: int,
    ) -> None:
        self._repository, self._access, self._inference = repository, access, inference
        self._traffic, self._largest = traffic, largest

    @asynccontextmanager
    async def running(self, where: Grpc) -> AsyncIterator[None]:
        """Serve there; the workers of one server share the port. OSError when it cannot."""
        options = [
            ("grpc.max_receive_message_length", self._largest),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.so_reuseport", 1),
            # Only plain messages: what a compressed one unpacks to is not bounded here.
            ("grpc.compression_enabled_algorithms_bitset", 1),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            if where.certificate and where.private_key:
                server.add_secure_port(where.address, _tls(where.certificate, where.private_key))
            else:
                server.add_insecure_port(where.address)
        except RuntimeError:
            raise OSError(f"gRPC cannot listen at {where.address}: another process may") from None
        await server.start()
        try:
            yield
        finally:
            await server.stop(GRACE_SECONDS)

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Callable[[_Asked], Awaitable[Any]], Any]] = {
            "ServerLive": (self.live, pb.ServerLiveRequest),
            "ServerReady": (self.ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.infer, pb.ModelInferRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, method), request.FromString, lambda m: m.SerializeToString()
            )
            for name, (method, request) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(
        self, name: str, method: Callable[["_Asked"], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            asked, start = _Asked(request, context), time.perf_counter_ns()
            try:
                if name not in OPEN:
                    asked.key = self._access.keys.authenticate(asked.fields.get("authorization"))
                    self._access.ledger.admit(asked.key)
                found = await method(asked)
            except ProtocolError as error:
                refusal = error
            except Exception as error:  # whatever it is, nothing of our inside is told
                _log.exception("request %s failed: %s", asked.id, type(error).__name__)
                refusal = ProtocolError(500, "internal error: see the server's log", "internal")
            else:
                self._noted(asked, 200, start)
                context.set_trailing_metadata(asked.trailers())
                return found
            self._noted(asked, refusal.status, start)
            metrics.refused(refusal.status, refusal.code)
            status = STATUS.get(refusal.status, grpc.StatusCode.INTERNAL)
            return await context.abort(status, refusal.message, asked.trailers(refusal))

        return answer

    def _noted(self, asked: "_Asked", status: int, start: int) -> None:
        if asked.served is not None:
            headers, trial = asked.served.headers, {"trial": asked.trial} if asked.trial else {}
            state = {"headers": headers, "request_id": asked.id, "key": asked.key, **trial}
            self._traffic.note(state, status, time.perf_counter_ns() - start)

    async def live(self, _: "_Asked") -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, _: "_Asked") -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def model_ready(self, asked: "_Asked") -> Any:
        name, number = asked.message.name, asked.message.version
        asked.allow("read", name)
        try:
            line = self._repository.line(name)
        except ProtocolError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=number in line.versions if number else line.ready)

    async def server_metadata(self, _: "_Asked") -> Any:
        return pb.ServerMetadataResponse(name="modelmint", version=release())

    async def model_metadata(self, asked: "_Asked") -> Any:
        name, number = asked.message.name, asked.message.version
        asked.allow("read", name)
        served = asked.served = self._repository.get(name, number or None)
        described = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=served.line,
            versions=sorted(self._repository.line(name).versions, key=int),
            platform="onnxruntime_onnx",
            inputs=[described(name=s.name, datatype=s.datatype, shape=s.shape)
                    for s in served.inputs],
            outputs=[described(name=s.name, datatype=s.datatype, shape=s.shape)
                     for s in served.outputs],
            properties={"digest": served.digest},
        )  # fmt: skip

    async def infer(self, asked: "_Asked") -> Any:
        start, message = time.perf_counter(), asked.message
        asked.allow("predict", message.model_name)
        name, number = message.model_name, message.model_version or None
        served, asked.trial = await self._traffic.pick(name, number, asked.key, asked.id)
        asked.served = served
        try:
            tensors, wanted = _inputs(message, served.inputs), _outputs(message, served.outputs)
        except ValueError as error:
            raise ProtocolError(400, str(error)) from None
        store = "no-store" not in asked.fields.get("cache-control", "")
        due = asked.deadline(self._inference.seconds)
        call = Call(asked.key, served, message.ByteSize(), due, store)
        found = await self._inference.run(call, tensors)
        asked.hit = found.hit
        answer = pb.ModelInferResponse(
            model_name=served.line, model_version=served.number, id=message.id
        )
        for spec, _ in wanted:
            array = found.outputs[spec.name]
            answer.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            answer.raw_output_contents.append(pack(array))
        rows = len(next(iter(tensors.values())))
        self._inference.answered(call, "infer", start, rows, answer.ByteSize())
        if (mirrored := self._traffic.mirror(served, tensors)) is not None:
            await mirrored()
        return answer


class _Asked:
    """A request, who asks, and what its answer's metadata says."""

    def __init__(self, message: Any, context: Any) -> None:
        self.message, self._context = message, context
        metadata: Sequence[tuple[str, Any]] = context.invocation_metadata() or ()
        self.fields: dict[str, str] = {n: v for n, v in metadata if isinstance(v, str)}
        given = str(self.fields.get("x-request-id") or getattr(message, "id", ""))
        self.id: str = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.key: ApiKey = None  # type: ignore[assignment]
        """Set before any method but the open ones is called."""
        self.served: Served | None = None
        self.trial: Canary | None = None
        self.hit: bool | None = None

    def allow(self, verb: Verb, line: str) -> None:
        """Raise ProtocolError 403 when the key may not do this to the line."""
        if not self.key.allows(verb, line):
            message = f"key {self.key.id} lacks the scope {verb}:{line[:41]}"
            raise ProtocolError(403, message, "forbidden")

    def deadline(self, seconds: float) -> float:
        """When the answer is due, in the loop's time: the caller's deadline, at most `seconds`."""
        left = self._context.time_remaining()
        return asyncio.get_running_loop().time() + min(seconds, seconds if left is None else left)

    def trailers(self, refusal: ProtocolError | None = None) -> tuple[tuple[str, str], ...]:
        """What HTTP says in headers."""
        found: dict[str, str] = {"x-request-id": self.id}
        if self.served:
            found |= self.served.headers
        if self.hit is not None:
            found["modelmint-cache"] = "hit" if self.hit else "miss"
        if refusal:
            found["modelmint-code"] = refusal.code
            if refusal.retry_after is not None:
                found["retry-after"] = str(max(1, round(refusal.retry_after)))
        return tuple(found.items())


def _tls(certificate: str, private_key: str) -> Any:
    """Credentials that are read anew for every connection, so files that are replaced count."""

    def read() -> Any:
        pair = Path(private_key).read_bytes(), Path(certificate).read_bytes()
        return grpc.ssl_server_certificate_configuration([pair])

    return grpc.dynamic_ssl_server_credentials(read(), read)


def _inputs(message: Any, specs: Sequence[TensorSpec]) -> Tensors:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ValueError(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    found: Tensors = {}
    for index, one in enumerate(message.inputs):
        spec = declared(one.name, specs, found)
        what = f"input {spec.name!r}"
        if one.datatype != spec.datatype:
            raise ValueError(f"{what} must have datatype {spec.datatype}")
        shape = check_shape(list(one.shape), spec)
        if raw:
            if one.contents.ListFields():
                raise ValueError(f"{what} has both contents and raw contents")
            found[spec.name] = from_binary(raw[index], 0, len(raw[index]), shape, spec)
            continue
        field = CONTENTS.get(spec.datatype)
        if field is None:
            raise ValueError(f"{what}: {spec.datatype} takes raw contents")
        values = list(getattr(one.contents, field))
        if spec.datatype == "BYTES":
            values = [_text(value, what) for value in values]
        found[spec.name] = from_json(values, shape, spec)
    return complete(found, specs)


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what}: a text is not UTF-8") from None


def _outputs(message: Any, specs: Sequence[TensorSpec]) -> list[Wanted]:
    if not message.outputs:
        return [Wanted(spec, True) for spec in specs]
    offered = {spec.name: spec for spec in specs}
    names = [one.name for one in message.outputs]
    if unknown := [name for name in names if name not in offered]:
        known = ", ".join(offered)
        raise ValueError(f"unknown output {unknown[0][:80]!r}: the model gives {known}")
    if len(set(names)) != len(names):
        raise ValueError("an output is asked for twice")
    if any("classification" in one.parameters for one in message.outputs):
        raise ValueError("the classification extension is not supported")
    return [Wanted(offered[name], True) for name in names]
