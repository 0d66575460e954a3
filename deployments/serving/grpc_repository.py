"""Triton's repository extension over gRPC: what `control` and `listing` do over HTTP."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from deployments.serving import open_inference_grpc_pb2 as pb
from deployments.serving.access import allow
from deployments.serving.control import Control
from deployments.serving.grpc_asked import Asked
from deployments.serving.grpc_methods import Method
from deployments.serving.listing import versions
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository

INDEXED = ("name", "version", "state", "reason")


class GrpcRepository:
    """The extension's methods; changes are made by `control`, with its checks and audit log."""

    def __init__(self, repository: Repository, control: Control) -> None:
        self._repository, self._control = repository, control

    def methods(self) -> Mapping[str, Method]:
        """Each by its name, with the message it takes."""
        return {
            "RepositoryIndex": (self.index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self.load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self.unload, pb.RepositoryModelUnloadRequest),
        }

    async def index(self, asked: Asked) -> Any:
        """The versions that the key may read."""
        _check(asked)
        key, found = asked.request.state.key, pb.RepositoryIndexResponse()
        for one in versions(self._repository, key, asked.message.ready):
            found.models.add(**{name: one[name] for name in INDEXED})
        return found

    async def load(self, asked: Asked) -> Any:
        """Load the version that the parameters name, or as `Control.loaded` says."""
        await self._control.loaded(*_managed(asked))
        return pb.RepositoryModelLoadResponse()

    async def unload(self, asked: Asked) -> Any:
        """Unload the version that the parameters name, or as `Control.unloaded` says."""
        await self._control.unloaded(*_managed(asked))
        return pb.RepositoryModelUnloadResponse()


def _check(asked: Asked) -> None:
    if asked.message.repository_name:
        raise ProtocolError(400, "there is one repository, without a name: give none")


def _managed(asked: Asked) -> tuple[Request, str, dict[str, Any]]:
    """The request, the line it may change, and the parameters of the change."""
    _check(asked)
    name = asked.message.model_name
    allow(asked.request, "manage", name)
    return asked.request, name, _parameters(asked.message)


def _parameters(message: Any) -> dict[str, Any]:
    found = {}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found
