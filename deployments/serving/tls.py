"""TLS of the server: certificates that are replaced count at once."""

import asyncio
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.serving.folder import stamp
from deployments.serving.http import Address

LOOK_SECONDS = 1.0
HEADERS = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
]
"""Sent with every answer."""
TLS_HEADERS = [("strict-transport-security", "max-age=31536000")]
_log = logging.getLogger("modelmint.serving")


def check(certificate: str, private_key: str) -> None:
    """Raises OSError, of which ssl.SSLError is one, unless the two can be read and fit together."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)


def context(config: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """The context of a worker, whose certificate is loaded again when its files change."""
    made = default()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    files = str(config.ssl_certfile), str(config.ssl_keyfile)
    threading.Thread(target=_follow, args=(made, *files), name="tls", daemon=True).start()
    return made


def _follow(made: ssl.SSLContext, certificate: str, private_key: str) -> None:
    seen = [stamp(Path(one)) for one in (certificate, private_key)]
    while True:
        time.sleep(LOOK_SECONDS)
        now = [stamp(Path(one)) for one in (certificate, private_key)]
        if now == seen:
            continue
        try:
            # Elsewhere first: half of a pair in the context would let nobody in.
            check(certificate, private_key)
            made.load_cert_chain(certificate, private_key)
            _log.warning("the certificate was loaded again")
        except OSError as error:
            _log.error("the new certificate cannot be used, the one before still is: %s", error)
        seen = now


def settings(certificate: str, private_key: str) -> dict[str, Any]:
    """uvicorn's options for TLS with these files."""
    return {
        "ssl_certfile": certificate,
        "ssl_keyfile": private_key,
        "ssl_context_factory": context,
    }


class _Beside(uvicorn.Server):
    """A server beside the worker's own, which alone hears signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def also_secure(app: ASGIApp, address: Address, drain: int) -> ASGIApp:
    """The application, which while it runs also answers over TLS at an address.

    The workers of one server share it. At the end, requests in flight have `drain` seconds.
    """
    assert address.certificate is not None
    assert address.private_key is not None
    config = uvicorn.Config(
        app, loop="none", http="deployments.serving.connection:Connection", ws="none",
        lifespan="off", access_log=False, server_header=False, log_config=None,
        timeout_graceful_shutdown=drain,
        headers=HEADERS + TLS_HEADERS, **settings(address.certificate, address.private_key),
    )  # fmt: skip
    server = _Beside(config)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        listening = socket.create_server((address.host, address.port), reuse_port=True)
        serving = asyncio.create_task(server.serve([listening]))
        serving.add_done_callback(_ended)

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                # Before the application ends what its requests need.
                server.should_exit = True
                await serving
            return message

        await app(scope, received, send)

    return both


def _ended(serving: "asyncio.Task[None]") -> None:
    """A port that listens and never answers is worse than a worker that is started again."""
    if not serving.cancelled() and serving.exception() is not None:
        _log.error("https cannot be served", exc_info=serving.exception())
        signal.raise_signal(signal.SIGTERM)
