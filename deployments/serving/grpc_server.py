"""The Open Inference Protocol v2 over gRPC: the same checks, keys, limits and batching as HTTP.

A caller's key is in the metadata, `authorization: Bearer mm_...`. Outputs are raw contents, as
Triton's are. `open_inference_grpc.proto` is the protocol's own (KServe, Apache-2.0) with the
messages of Triton's repository extension; the module beside it is made by

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. open_inference_grpc.proto

with a protoc no newer than the oldest protobuf that is to run it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from deployments.serving import metrics
from deployments.serving import open_inference_grpc_pb2 as pb
from deployments.serving.access import Access, allow
from deployments.serving.capture import Capture
from deployments.serving.control import Control
from deployments.serving.elements import pack
from deployments.serving.grpc_asked import Asked
from deployments.serving.grpc_listener import MOST_CALLS, credentials, options
from deployments.serving.grpc_messages import inputs, outputs, timeout
from deployments.serving.grpc_repository import GrpcRepository
from deployments.serving.http import Address, header, may_store, release, request_id
from deployments.serving.inference import Call, Inference
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic

if TYPE_CHECKING:
    from deployments.serving.tracing import Tracing

SERVICE = "inference.GRPCInferenceService"
GRACE_SECONDS = 5.0
OPEN = frozenset(("ServerLive", "ServerReady"))
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED, 409: grpc.StatusCode.FAILED_PRECONDITION,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
_log = logging.getLogger("modelmint.serving")


class GrpcServer:
    """The protocol's service at an address, within the event loop that runs it."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        inference: Inference,
        traffic: Traffic,
        capture: Capture | None,
        control: Control,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._repository, self._access, self._inference = repository, access, inference
        self._traffic, self._capture, self._tracing = traffic, capture, tracing
        self._extension = GrpcRepository(repository, control)

    @asynccontextmanager
    async def running(self, address: Address, largest: int, seconds: float) -> AsyncIterator[None]:
        """Serve at an address the workers of one server share.

        A message has up to `largest` bytes and must arrive whole within `seconds`.
        Raises OSError when it cannot listen there.
        """
        server = grpc.aio.server(options=options(largest), maximum_concurrent_rpcs=MOST_CALLS)
        server.add_generic_rpc_handlers((self._handlers(seconds),))
        place = f"{address.host}:{address.port}"
        try:
            if address.certificate and address.private_key:
                files = Path(address.private_key), Path(address.certificate)
                server.add_secure_port(place, credentials(*files))
            else:
                server.add_insecure_port(place)
        except RuntimeError:
            raise OSError(f"gRPC cannot listen at {place}: another process may") from None
        await server.start()
        try:
            yield
        finally:
            await server.stop(GRACE_SECONDS)

    def _handlers(self, seconds: float) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Callable[[Asked], Awaitable[Any]], Any]] = {
            "ServerLive": (self.live, pb.ServerLiveRequest),
            "ServerReady": (self.ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.infer, pb.ModelInferRequest),
            **self._extension.methods(),
        }
        handlers = {
            # Bytes come and go: gRPC would log a caller's nonsense with a traceback. And it would
            # read the one message before it asks whose it is, but those of a stream it leaves to
            # be read; on the wire both are the same.
            name: grpc.stream_unary_rpc_method_handler(self._guarded(name, method, kind, seconds))
            for name, (method, kind) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(
        self, name: str, method: Callable[[Asked], Awaitable[Any]], kind: Any, seconds: float
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(_: Any, context: Any) -> Any:
            start, message = time.perf_counter_ns(), kind()
            asked, refusal = Asked(message, context), None
            request = asked.request
            try:
                if name not in OPEN:
                    shown = header(request, b"authorization")
                    request.state.key = self._access.keys.authenticate(shown)
                    self._access.ledger.admit(request.state.key)
                    body = await _received(context, seconds)
                    await asked.read(body, self._inference.seconds)
                asked.name()
                found = await method(asked)
            except ProtocolError as error:
                refusal = error
            except DecodeError:
                refusal = ProtocolError(400, f"the request is no {kind.DESCRIPTOR.name}")
            except Exception as error:  # whatever it is, nothing of our inside is told
                _log.exception("request %s failed: %s", request_id(request), type(error).__name__)
                refusal = ProtocolError(500, "internal error: see the server's log", "internal")
            if hasattr(request.state, "headers"):  # a version was to answer
                status = refusal.status if refusal else 200
                spent = time.perf_counter_ns() - start
                self._traffic.note(request.scope["state"], status, spent)
            if refusal is None:
                context.set_trailing_metadata(asked.trailers())
                return found.SerializeToString()
            metrics.refused(refusal.status, refusal.code)
            code = STATUS.get(refusal.status, grpc.StatusCode.INTERNAL)
            return await context.abort(code, refusal.message, asked.trailers(refusal))

        if self._tracing is None or name in OPEN:
            return answer
        return self._tracing.rpc(f"{SERVICE}/{name}", answer, self._known)

    def _known(self, shown: str | None) -> bool:
        try:
            self._access.keys.authenticate(shown)
        except ProtocolError:
            return False
        return True

    async def live(self, _: Asked) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, _: Asked) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def model_ready(self, asked: Asked) -> Any:
        name, number = asked.message.name, asked.message.version
        allow(asked.request, "read", name)
        try:
            line = self._repository.line(name)
        except ProtocolError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=line.answers(number) if number else line.ready)

    async def server_metadata(self, _: Asked) -> Any:
        return pb.ServerMetadataResponse(
            name="modelmint", version=release(), extensions=["model_repository"]
        )

    async def model_metadata(self, asked: Asked) -> Any:
        name, number = asked.message.name, asked.message.version
        allow(asked.request, "read", name)
        served = await anyio.to_thread.run_sync(self._repository.wake, name, number or None)
        line = self._repository.line(name)
        described = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=served.line,
            versions=sorted((n for n in line.digests if line.answers(n)), key=int),
            platform=served.platform,
            inputs=[described(name=s.name, datatype=s.datatype, shape=s.shape)
                    for s in served.inputs],
            outputs=[described(name=s.name, datatype=s.datatype, shape=s.shape)
                     for s in served.outputs],
            properties={"digest": served.digest},
        )  # fmt: skip

    async def infer(self, asked: Asked) -> Any:
        start, message, request = time.perf_counter(), asked.message, asked.request
        allow(request, "predict", message.model_name)
        request.path_params["name"] = message.model_name
        request.path_params["version"] = message.model_version or None
        served = await self._traffic.choose(request)
        request.state.headers = served.headers
        due = asked.deadline(self._inference.seconds)
        call = Call(request.state.key, served, asked.size, due, may_store(request))
        with self._inference.metered(call):
            try:
                tensors = await asked.beside(partial(inputs, message, served.inputs), due)
                wanted = outputs(message, served.outputs)
                call = call.within(timeout(message))
            except ValueError as error:
                raise ProtocolError(400, str(error)) from None
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
        if self._capture is not None and call.store:
            self._capture.take(served, tensors)
        if mirrored := self._traffic.mirror(served, tensors):
            await mirrored()  # puts it into a queue, or drops it
        return answer


async def _received(context: Any, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            body = await context.read()
    except TimeoutError:
        raise ProtocolError(408, "the message did not arrive in time", "timeout") from None
    if body is grpc.aio.EOF:
        raise ProtocolError(400, "the call has no message")
    return bytes(body)
