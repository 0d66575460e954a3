"""The methods of the protocol over gRPC, but for those of the repository extension."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio.to_thread

from deployments.serving import open_inference_grpc_pb2 as pb
from deployments.serving.access import allow
from deployments.serving.capture import Capture
from deployments.serving.elements import pack
from deployments.serving.grpc_asked import Asked
from deployments.serving.grpc_messages import inputs, outputs, timeout
from deployments.serving.http import may_store, release
from deployments.serving.inference import Call, Inference
from deployments.serving.protocol import ProtocolError, count
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic

EXTENSIONS = ("model_repository", "model_stream_infer")
Method = tuple[Callable[[Asked], Awaitable[Any]], Any]


class GrpcMethods:
    """What each answers to a message; ProtocolError where it does not."""

    def __init__(
        self,
        repository: Repository,
        inference: Inference,
        traffic: Traffic,
        capture: Capture | None,
    ) -> None:
        self._repository, self._inference = repository, inference
        self._traffic, self._capture = traffic, capture

    def methods(self) -> Mapping[str, Method]:
        """Each by its name, with the message it takes."""
        return {
            "ServerLive": (self.live, pb.ServerLiveRequest),
            "ServerReady": (self.ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.infer, pb.ModelInferRequest),
        }

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
        return pb.ServerMetadataResponse(name="modelmint", version=release(), extensions=EXTENSIONS)

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
        message, request = asked.message, asked.request
        allow(request, "predict", message.model_name)
        request.path_params["name"] = message.model_name
        request.path_params["version"] = message.model_version or None
        served = await self._traffic.choose(request)
        request.state.headers = served.headers
        due = asked.deadline(self._inference.seconds)
        hurried = asked.deadline(math.inf) < math.inf
        call = Call(request.state.key, served, asked.size, due, may_store(request), hurried)
        with self._inference.metered(call):
            try:
                tensors = await asked.beside(partial(inputs, message, served.inputs), due)
                wanted = outputs(message, served.outputs)
                seconds = timeout(message)
            except ValueError as error:
                raise ProtocolError(400, str(error)) from None
        if seconds is not None:
            call = call.within(seconds - (time.perf_counter() - asked.start))
        found = await self._inference.run(call, tensors)
        asked.hit = found.hit
        answer = pb.ModelInferResponse(
            model_name=served.line, model_version=served.number, id=message.id
        )
        for spec, _ in wanted:
            array = found.outputs[spec.name]
            answer.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            answer.raw_output_contents.append(pack(array))
        self._inference.answered(call, "infer", asked.start, count(tensors), answer.ByteSize())
        if self._capture is not None and call.store:
            self._capture.take(served, tensors)
        if mirrored := self._traffic.mirror(served, tensors):
            await mirrored()  # puts it into a queue, or drops it
        return answer
