"""What people read: the web page at `/`, what a line takes and gives, provenance, OpenAPI.

The page is one file that asks the routes everybody else asks, with a key that its reader types; by
itself it holds nothing, so it is for all.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.serving.access import allow
from deployments.serving.explain import explainable
from deployments.serving.folder import version_folder
from deployments.serving.http import as_json, header, release
from deployments.serving.openapi import document
from deployments.serving.protocol import JSON, ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from models.audio import AudioFeatures
from models.generation import Sampling
from models.images import ImageFeatures
from models.objectives import Classification, Regression
from models.signature import PROVENANCE_FILE
from models.tables import TableFeatures

PAGE = Path(__file__).with_name("page.html")


class Pages:
    """Routes for people about the lines of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def routes(self) -> list[Route]:
        """All of them below `/v1/lines`."""
        return [
            Route(f"/v1/lines/{{name}}{version}{what}", answer, methods=["GET"])
            for version in ("", "/versions/{version}")
            for what, answer in (("", self.line), ("/provenance", self.provenance))
        ]

    async def line(self, request: Request) -> Response:
        """What a person sends for a prediction, and what comes back."""
        served = await self._served(request)
        answer: dict[str, Any] = {"line": served.line, "version": served.number}
        answer |= {"digest": served.digest, "takes": _takes(served), "gives": _gives(served)}
        answer["explained"] = explainable(served)
        return as_json(answer, headers=served.headers)

    async def provenance(self, request: Request) -> Response:
        """The version's signed in-toto statement, as it was verified."""
        served = await self._served(request)
        folder = version_folder(self._repository.root, served.line, served.number)
        try:
            content = await anyio.to_thread.run_sync((folder / PROVENANCE_FILE).read_bytes)
        except OSError:
            raise ProtocolError(404, "its provenance is not here any more", "no_folder") from None
        return Response(content, headers=served.headers, media_type=JSON)

    async def _served(self, request: Request) -> Served:
        name, number = request.path_params["name"], request.path_params.get("version")
        allow(request, "read", name)
        return await anyio.to_thread.run_sync(self._repository.wake, name, number)


def with_pages(app: ASGIApp, routes: Sequence[Route]) -> ASGIApp:
    """The application, with the page for browsers at `/` and the document at `/openapi.json`."""
    html = PAGE.read_bytes()
    page = partial(Response, html, headers=_protection(html.decode()), media_type="text/html")
    described = orjson.dumps(document(routes, release()))

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            if scope["path"] == "/openapi.json":
                return await Response(described, media_type=JSON)(scope, receive, send)
            if scope["path"] == "/" and "text/html" in (header(Request(scope), b"accept") or ""):
                return await page()(scope, receive, send)
        return await app(scope, receive, send)

    return answered


def _protection(html: str) -> dict[str, str]:
    """Headers with which a browser runs what is in the page, and nothing else."""

    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in found]
        return " ".join(f"'sha256-{one.decode()}'" for one in hashes)

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')};"
        " img-src data: blob:; media-src blob:; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept",
    }


def _takes(served: Served) -> dict[str, Any]:
    features = served.signature.features
    if isinstance(features, ImageFeatures):
        size = features.size.model_dump()
        return {"kind": "image", "media_types": ["image/png", "image/jpeg"], **size}
    if isinstance(features, TableFeatures):
        numbers = [{"name": n.name, "unit": n.unit, "mean": n.mean} for n in features.numbers]
        texts = [{"name": c.name, "values": list(c.vocabulary)} for c in features.categories]
        kinds = ["application/json", "text/csv"]
        return {"kind": "record", "media_types": kinds, "numbers": numbers, "categories": texts}
    if isinstance(features, AudioFeatures):
        return {"kind": "audio", "media_types": ["audio/wav"], **features.clip.model_dump()}
    found: dict[str, Any] = {"kind": "text", "media_types": ["text/plain", "application/json"]}
    if served.signature.objective.steps:
        found |= {"kind": "prompt", "sampling": Sampling().model_dump(exclude={"stream"})}
    return found


def _gives(served: Served) -> dict[str, Any]:
    objective = served.signature.objective
    found: dict[str, Any] = {"target": objective.target}
    if isinstance(objective, Classification):
        found["labels"] = list(objective.labels)
    if isinstance(objective, Regression):
        found["unit"] = objective.unit
    return found
