"""The Open Inference Protocol v2 over gRPC: the same checks, keys, limits and batching as HTTP.

A caller's key is in the metadata, `authorization: Bearer mm_...`. Outputs are raw contents, as
Triton's are. `open_inference_grpc.proto` is the protocol's own (KServe, Apache-2.0) with the
messages of Triton's streaming and of its repository extension; the module beside it is made by

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. open_inference_grpc.proto

with a protoc no newer than the oldest protobuf that is to run it.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from deployments.serving import metrics
from deployments.serving import open_inference_grpc_pb2 as pb
from deployments.serving.access import Access
from deployments.serving.capture import Capture
from deployments.serving.control import Control
from deployments.serving.grpc_asked import Asked, Told
from deployments.serving.grpc_listener import MOST_CALLS, credentials, options
from deployments.serving.grpc_methods import GrpcMethods
from deployments.serving.grpc_repository import GrpcRepository
from deployments.serving.grpc_room import Room, places, received
from deployments.serving.grpc_stream import Reply, converse
from deployments.serving.http import Address, header, request_id
from deployments.serving.inference import Inference
from deployments.serving.keys import ApiKey
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic

if TYPE_CHECKING:
    from deployments.serving.tracing import Tracing

SERVICE = "inference.GRPCInferenceService"
STREAM = "ModelStreamInfer"
STRICT = b"triton_grpc_error"
"""With `true`, Triton's clients ask that the first error ends a stream, by its status."""
GRACE_SECONDS = 5.0
OPEN = frozenset(("ServerLive", "ServerReady"))
Receive = Callable[[ApiKey], AbstractAsyncContextManager[bytes]]
Answer = Callable[[Asked, Receive | None], Awaitable[Told]]
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
        self._inference = inference
        self._access, self._traffic, self._tracing = access, traffic, tracing
        self._seconds = inference.seconds
        self._one_large = anyio.CapacityLimiter(1)
        methods = GrpcMethods(repository, inference, traffic, capture)
        self._methods = {**methods.methods(), **GrpcRepository(repository, control).methods()}

    @asynccontextmanager
    async def running(self, address: Address, largest: int, seconds: float) -> AsyncIterator[None]:
        """Serve at an address the workers of one server share.

        A message has up to `largest` bytes and must arrive whole within `seconds`.
        Raises OSError when it cannot listen there.
        """
        server = grpc.aio.server(options=options(largest), maximum_concurrent_rpcs=MOST_CALLS)
        room = Room(places(largest), "messages are being received")
        streams = Room(places(largest), "streams are open")
        server.add_generic_rpc_handlers((self._handlers(room, streams, seconds),))
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
            words = "the server ends: start another stream"
            streams.close(ProtocolError(503, words, "ending"))
            await server.stop(GRACE_SECONDS)

    def _handlers(self, room: Room, streams: Room, seconds: float) -> grpc.GenericRpcHandler:
        handlers = {
            # Bytes come and go: gRPC would log a caller's nonsense with a traceback. And it would
            # read the one message before it asks whose it is, but those of a stream it leaves to
            # be read; on the wire both are the same.
            name: grpc.stream_unary_rpc_method_handler(
                self._single(
                    kind, self._answer(name, name), room if name not in OPEN else None, seconds
                )
            )
            for name, (_, kind) in self._methods.items()
        }
        stream = self._several(self._answer(STREAM, "ModelInfer"), streams, seconds)
        handlers[STREAM] = grpc.stream_stream_rpc_method_handler(stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answer(self, name: str, method: str) -> Answer:
        answer = partial(self._answered, self._methods[method][0])
        if self._tracing is None or name in OPEN:
            return answer
        return self._tracing.rpc(f"{SERVICE}/{name}", answer, self._known)

    def _single(self, kind: Any, answer: Answer, room: Room | None, seconds: float) -> Any:
        async def respond(_: Any, context: Any) -> Any:
            asked = Asked(kind(), context)
            receive = None if room is None else partial(received, context, room, seconds)
            told = await answer(asked, receive)
            if told.refusal is not None:
                return await _abort(context, asked, told.refusal)
            context.set_trailing_metadata(asked.trailers())
            return told.found.SerializeToString()

        return respond

    def _several(self, answer: Answer, streams: Room, seconds: float) -> Any:
        async def respond(_: Any, context: Any) -> Any:
            opened = Asked(None, context)
            check = partial(self._key, opened)
            strict = header(opened.request, STRICT) == "true"
            try:
                place = await streams.enter(check().tenant, 0)
            except ProtocolError as error:
                metrics.refused(error.status, error.code)
                return await _abort(context, opened, error)
            reply = partial(_reply, answer, context, strict)
            try:
                ending = await converse(context, place, check, reply, seconds)
                return None if ending is None else await _abort(context, opened, ending)
            finally:
                streams.leave(place)

        return respond

    def _key(self, asked: Asked) -> ApiKey:
        return self._access.keys.authenticate(header(asked.request, b"authorization"))

    async def _answered(
        self, method: Callable[[Asked], Awaitable[Any]], asked: Asked, receive: Receive | None
    ) -> Told:
        """What a method tells of one message, whichever way that came; it is noted and counted.

        Without `receive` nothing is read, and nobody has to show a key.
        """
        start, request = time.perf_counter_ns(), asked.request
        try:
            async with AsyncExitStack() as held:
                if receive is not None:
                    key = request.state.key = self._key(asked)
                    self._access.ledger.admit(key)
                    body = await held.enter_async_context(receive(key))
                    await asked.read(body, self._seconds, self._one_large)
                asked.name()
                told = Told(await method(asked))
        except ProtocolError as error:
            told = Told(None, error)
        except DecodeError:
            told = Told(None, self._undecodable(asked))
        except Exception as error:  # whatever it is, nothing of our inside is told
            _log.exception("request %s failed: %s", request_id(request), type(error).__name__)
            told = Told(
                None, ProtocolError(500, "internal error: see the server's log", "internal")
            )
        refusal = told.refusal
        if hasattr(request.state, "headers"):  # a version was to answer
            status = refusal.status if refusal else 200
            self._traffic.note(request.scope["state"], status, time.perf_counter_ns() - start)
        if refusal is not None:
            metrics.refused(refusal.status, refusal.code)
        return told

    def _undecodable(self, asked: Asked) -> ProtocolError:
        try:
            with self._inference.unnamed(asked.request.state.key, asked.size):
                raise ProtocolError(400, f"the request is no {asked.message.DESCRIPTOR.name}")
        except ProtocolError as error:
            return error

    def _known(self, shown: str | None) -> bool:
        try:
            self._access.keys.authenticate(shown)
        except ProtocolError:
            return False
        return True


async def _reply(answer: Answer, context: Any, strict: bool, body: bytes) -> Reply:
    """What a stream is told of one of its requests, in its parameters what trailers tell a call."""

    asked = Asked(pb.ModelInferRequest(), context, of_stream=True)
    message = asked.message
    told = await answer(asked, lambda _: nullcontext(body))
    refusal = told.refusal
    if refusal is not None and (strict or refusal.status == 401):
        return Reply(b"", refusal)
    found = told.found
    if refusal is not None:
        found = pb.ModelInferResponse(
            id=message.id, model_name=message.model_name, model_version=message.model_version
        )
    for name, value in asked.trailers(refusal):
        found.parameters[name].string_param = value
    # Every request has one answer, so none needs an empty one after it to tell that it was all.
    found.parameters["triton_final_response"].bool_param = True
    words = ""
    if refusal is not None:
        # All that Triton's clients show of it.
        words = f"[request id: {request_id(asked.request)}] {refusal.code}: {refusal.message}"
    answered = pb.ModelStreamInferResponse(error_message=words, infer_response=found)
    return Reply(answered.SerializeToString())


async def _abort(context: Any, asked: Asked, refusal: ProtocolError) -> Any:
    status = Told(None, refusal).status
    return await context.abort(status, refusal.message, asked.trailers(refusal))
