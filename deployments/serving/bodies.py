"""Bodies of requests, read within bounds: of each one, and of what all of a worker hold together.

Who sends slowly holds what came for as long as that takes, and over any number of connections. So a
tenant may hold as much as is still free: one alone half of it, and nobody leaves nothing to others
(dynamic thresholds, Choudhury and Hahne, 1998). What came counts until its request is answered.
"""

import asyncio
import zlib
from collections import Counter
from functools import partial

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.serving.defaults import MOST_HELD
from deployments.serving.http import UNREAD, Body, header
from deployments.serving.ledger import EVERY, Counts, Ledger
from deployments.serving.protocol import ProtocolError

UNPACKING = 4
"""Bodies that are unpacked at once: each may become as large as a body may be."""
_WINDOWS = {"identity": 0, "gzip": 31, "deflate": 15}
"""Content encodings, and the window by which zlib knows them."""
_HELD, _CAME = "modelmint.held", "modelmint.came"


class Bodies:
    """The bodies that one worker process reads; for its event loop.

    One has up to `largest` bytes and must arrive whole within `seconds`; all together they hold up
    to `most`, or two of the largest.
    """

    def __init__(self, largest: int, seconds: float, most: int = MOST_HELD) -> None:
        self._largest, self._seconds, self._most = largest, seconds, max(most, 2 * largest)
        self._held: Counter[str] = Counter()
        self._total = 0
        self._unpacking = anyio.CapacityLimiter(UNPACKING)

    def up_to(self, largest: int, ledger: Ledger | None = None) -> Body:
        """Reads bodies of so many bytes at most.

        With a ledger what is refused on its way costs its sender what came, and nothing is read of
        a key whose bytes of the day are used up.
        """
        read = partial(self._read, largest=min(largest, self._largest))
        return read if ledger is None else partial(_metered, read, ledger)

    def released(self, app: ASGIApp) -> ASGIApp:
        """The application, whose requests let go of their bodies once they are answered."""

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                if _HELD in scope:
                    self._count(scope["state"]["key"].tenant, -scope.pop(_HELD))

        return answered

    async def _read(self, request: Request, largest: int) -> bytes:
        """The whole body, decompressed; raises ProtocolError 400, 408, 413, 415, 429.

        `largest` bounds what is sent and what it unpacks to, before that is allocated.
        """
        too_large = ProtocolError(413, f"the body is over {largest:,} bytes", "too_large")
        request.scope[UNREAD] = True
        announced = header(request, b"content-length")
        if announced is not None and int(announced) > largest:  # the HTTP parser let digits through
            raise too_large
        encoding = (header(request, b"content-encoding") or "identity").strip().lower()
        if encoding not in _WINDOWS:
            raise ProtocolError(415, "a body may be compressed by gzip or deflate", "media_type")
        body = bytearray()  # grows with what comes; a list would pay for every chunk of a byte
        try:
            # uvicorn has no deadline of its own: a slow sender would hold a connection for ever.
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    request.scope[_CAME] = came = len(body) + len(chunk)
                    if came > largest:
                        raise too_large
                    self._hold(request, len(chunk))
                    body += chunk
        except TimeoutError:
            raise ProtocolError(408, "the body did not arrive in time", "timeout") from None
        except ClientDisconnect:  # nobody reads this answer, and it is no failure of ours
            raise ProtocolError(400, "the caller left", "disconnected") from None
        del request.scope[UNREAD]
        if encoding == "identity":
            return bytes(body)
        unpack = partial(_unpack, bytes(body), encoding, largest)
        found = await anyio.to_thread.run_sync(unpack, limiter=self._unpacking)
        self._hold(request, len(found) - len(body))
        return found

    def _hold(self, request: Request, size: int) -> None:
        tenant = request.state.key.tenant
        if self._held[tenant] + size > self._most - self._total - size:
            message = "too much is being sent: ask again later"
            raise ProtocolError(429, message, "overloaded", retry_after=1)
        self._count(tenant, size)
        request.scope[_HELD] = request.scope.get(_HELD, 0) + size

    def _count(self, tenant: str, change: int) -> None:
        self._total += change
        self._held[tenant] += change
        if not self._held[tenant]:
            del self._held[tenant]


async def _metered(read: Body, ledger: Ledger, request: Request) -> bytes:
    # Where a path names a line, it was found by now.
    key, line = request.state.key, request.path_params.get("name", EVERY)
    request.scope[UNREAD] = True
    ledger.check(key, line, 0, rows=0)
    try:
        return await read(request)
    except ProtocolError as error:
        came = request.scope.get(_CAME, 0)
        if came and error.status != 429:
            ledger.add(key, line, Counts(bytes_in=came))
        raise


def _unpack(body: bytes, encoding: str, largest: int) -> bytes:
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        found = stream.decompress(body, largest + 1)
    except zlib.error:
        raise ProtocolError(400, f"the body is no whole {encoding} stream") from None
    if len(found) > largest:
        raise ProtocolError(413, f"the body unpacks to over {largest:,} bytes", "too_large")
    if not stream.eof or stream.unused_data:
        raise ProtocolError(400, f"the body is no whole {encoding} stream")
    return found
