"""The model server's application: who is let in, the routes, and what runs beside them.

All but its health is for callers with a key (`access`). Bare Starlette: on a small network, parsing
and routing cost more than computing.
"""

import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deployments.serving.access import Access
from deployments.serving.accounts import Accounts
from deployments.serving.bodies import Bodies
from deployments.serving.capture import Capture
from deployments.serving.completions import Completions
from deployments.serving.control import Control
from deployments.serving.cross_origin import cross_origin
from deployments.serving.defaults import BODY_SECONDS, MAX_BODY, MOST_HELD
from deployments.serving.direct import STATE, Direct
from deployments.serving.http import INLINE_BYTES, Address, identified, on_error
from deployments.serving.inference import DEFAULTS, Inference, Settings
from deployments.serving.listing import Listing
from deployments.serving.pages import Pages, with_pages
from deployments.serving.predictions import Predictions
from deployments.serving.protocol import ProtocolError
from deployments.serving.recorder import Recorder
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic
from deployments.serving.trials import Trials
from deployments.serving.writing import Writing

if TYPE_CHECKING:
    from deployments.serving.tracing import Tracing

PROMPT_BYTES = 250_000
"""Largest body in OpenAI's words: JSON read in this process, where nothing else runs then."""
WARM_SECONDS = 1.0
"""From the start until a decoder is made ready."""


def create(
    repository: Repository,
    access: Access,
    recorder: Recorder,
    traffic: Traffic,
    *,
    max_body: int = MAX_BODY,
    body_seconds: float = BODY_SECONDS,
    most_held: int = MOST_HELD,
    settings: Settings = DEFAULTS,
    capture: Capture | None = None,
    grpc: Address | None = None,
    tracing: "Tracing | None" = None,
    allow_origin: Sequence[str] = (),
) -> ASGIApp:
    """The application over a restored repository, for those whom `access` lets in.

    `max_body` and `most_held`, of all bodies together, are in bytes; a request's body must arrive
    whole within `body_seconds`; `capture` is given what was answered. While it runs, the protocol
    is also spoken over gRPC at `grpc`. `tracing` is told of every request. Pages of the
    origins may ask from a browser.
    """
    handlers = dict.fromkeys((ProtocolError, HTTPException, Exception), on_error)
    inference = (tracing.inference if tracing else Inference)(access.ledger, settings)
    writing = Writing(inference, access.ledger)
    bodies = Bodies(max_body, body_seconds, most_held)
    body, words = bodies.up_to(max_body, access.ledger), bodies.up_to(INLINE_BYTES)
    prompt = bodies.up_to(PROMPT_BYTES, access.ledger)
    control = Control(repository, access, recorder, words)
    parts = (
        Predictions(inference, writing, traffic, capture, body),
        Completions(repository, inference, writing, traffic, capture, prompt),
        Listing(repository, words),
        Pages(repository),
        control,
        Trials(repository, access, traffic, words),
        Accounts(access, words),
    )
    routes = [route for part in parts for route in part.routes()]

    state: dict[str, Any] = {}
    if tracing is None:  # which is told of every request
        state[STATE] = Direct(repository, access, traffic, inference, capture, max_body)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        # After the first answers: what it imports would slow the start.
        warming = threading.Timer(WARM_SECONDS, inference.decoders.warm)
        warming.daemon = True
        warming.start()
        try:
            if grpc is None:
                yield state
                return
            from deployments.serving.grpc_server import GrpcServer

            spoken = GrpcServer(repository, access, inference, traffic, capture, control, tracing)
            async with spoken.running(grpc, max_body, body_seconds):
                yield state
        finally:
            warming.cancel()
            await anyio.to_thread.run_sync(inference.close)
            await anyio.to_thread.run_sync(traffic.close)
            if capture is not None:
                await anyio.to_thread.run_sync(capture.close)
            if tracing is not None:
                await anyio.to_thread.run_sync(tracing.close)

    app = Starlette(routes=_by_path(routes), exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    inside = traffic.watch(bodies.released(app))
    if tracing is not None:
        inside = tracing.watch(inside, routes)
    return identified(cross_origin(with_pages(access.guard(inside), routes), allow_origin))


def _by_path(routes: Sequence[Route]) -> list[Route]:
    """One route a path, whatever its methods: Starlette's 405 names those of the first alone."""
    grouped: dict[str, dict[str, Route]] = {}
    for route in routes:
        for method in route.methods or ():
            grouped.setdefault(route.path, {}).setdefault(method, route)

    def joined(path: str, methods: dict[str, Route]) -> Route:
        first = next(iter(methods.values()))
        if all(route is first for route in methods.values()):
            return first

        async def answer(request: Request) -> Response:
            response: Response = await methods[request.method].endpoint(request)
            return response

        return Route(path, answer, methods=sorted(methods))

    return [joined(path, methods) for path, methods in grouped.items()]
