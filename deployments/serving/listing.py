"""Routes that tell what is here: health, lines, models, the repository; counts for Prometheus."""

from functools import partial
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.serving import metrics
from deployments.serving.access import allow
from deployments.serving.http import Body, as_json, as_object, release, request_id
from deployments.serving.keys import ApiKey
from deployments.serving.line import Line
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from models.tensors import TensorSpec


class Listing:
    """What the repository holds, to those who may read it."""

    def __init__(self, repository: Repository, body: Body) -> None:
        self._repository, self._body = repository, body

    def routes(self) -> list[Route]:
        """Below `/`, `/metrics` and `/v2`."""
        get, post = ["GET"], ["POST"]
        found = [
            Route("/", self.index, methods=get),
            Route("/v2", self.server_metadata, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/v2/repository/index", self.repository_index, methods=post),
        ]
        for version in ("", "/versions/{version}"):
            model = "/v2/models/{name}" + version
            found.append(Route(model, self.model_metadata, methods=get))
            found.append(Route(f"{model}/ready", self.model_ready, methods=get))
        return found

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
            "platform": served.platform,
            "inputs": [_described(spec) for spec in served.inputs],
            "outputs": [_described(spec) for spec in served.outputs],
        }
        return as_json(answer, headers=served.headers)

    async def model_ready(self, request: Request) -> Response:
        name, number = request.path_params["name"], request.path_params.get("version")
        allow(request, "read", name)
        line = self._repository.line(name)
        answer = {"name": name, "version": number or line.default, "failed": _reasons(line)}
        ready = line.ready if number is None else line.answers(number)
        refusal = None if ready else self._refusal(name, number)
        if refusal is None:
            return as_json(answer | {"ready": True})
        if number is not None and refusal.status == 404:
            raise refusal
        # What is known and cannot answer now may do so later.
        metrics.refused(503, refusal.code)
        said = {"error": refusal.message, "code": refusal.code, "request_id": request_id(request)}
        return as_json(answer | {"ready": False} | said, status=503)

    def _refusal(self, name: str, number: str | None) -> ProtocolError | None:
        try:
            self._repository.get(name, number)
        except ProtocolError as error:
            return error
        return None

    async def repository_index(self, request: Request) -> Response:
        only_ready = as_object(await self._body(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise ProtocolError(400, "ready must be true or false")
        return as_json(versions(self._repository, request.state.key, only_ready))

    async def metrics(self, request: Request) -> Response:
        allow(request, "read")
        found = await anyio.to_thread.run_sync(metrics.exposition)
        return Response(found, media_type=metrics.CONTENT_TYPE)


def versions(repository: Repository, key: ApiKey, only_ready: bool) -> list[dict[str, Any]]:
    """The versions that a key may read, each as the repository extension's index tells of it."""
    found: list[dict[str, Any]] = []
    for name, line in repository.lines.items():
        if not key.allows("read", name):
            continue
        for number, served in line.versions.items():
            found.append(_listed(name, number, line, served.digest, "READY"))
        for number, digest in line.idle.items():
            one = _listed(name, number, line, digest, "READY")
            found.append(one | {"reason": "out of memory: opened when asked for"})
        if only_ready:
            continue
        for number, digest in line.opening.items():
            found.append(_listed(name, number, line, digest, "LOADING"))
        for number, failed in line.failed.items():
            one = _listed(name, number, line, failed.digest, "UNAVAILABLE")
            found.append(one | {"reason": failed.reason})
    return found


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
