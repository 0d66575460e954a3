"""Small `infer` requests, answered without the application.

What came at once for a quick network, over all connections, is computed together where rows may be:
nobody waits for it. What takes longer is looked up, waits and is computed as `inference` has it.
The checks, charges, counts and words are those of the application (`predictions`): whatever is not
plainly an answer with status 200 is left to it, and is not charged by then. So here are no errors,
canaries, shadows or deadlines of the caller's.
"""

import asyncio
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from deployments.serving import metrics
from deployments.serving.access import Access
from deployments.serving.batching import compute, fit
from deployments.serving.capture import Capture
from deployments.serving.http import DUE, INLINE_BYTES, NO_STORE, identity
from deployments.serving.inference import CACHE, Call, Inference, quick
from deployments.serving.keys import ApiKey
from deployments.serving.ledger import Charge, Counts
from deployments.serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    JSON,
    InferRequest,
    ProtocolError,
    Tensors,
    parse,
    render,
)  # fmt: skip
from deployments.serving.repository import Repository
from deployments.serving.session import INLINE_SECONDS, Served
from deployments.serving.traffic import Traffic

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

STATE = "direct"
"""Under which name of the lifespan's state the application offers a `Direct`."""
PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
MEDIA_TYPES = (JSON.encode(), BINARY.encode())
UNUSUAL = frozenset(
    (b"content-encoding", b"transfer-encoding", b"expect", b"origin", b"upgrade",
     b"modelmint-timeout-ms")
)  # fmt: skip
"""Headers that ask for what is not done here."""
_LENGTH = HEADER_LENGTH.encode()


class Connected(Protocol):
    """The connection that a request came over."""

    server_state: "ServerState"

    def ready(self, cycle: "RequestResponseCycle") -> bool: ...

    def answer(self, cycle: "RequestResponseCycle", *parts: bytes) -> None: ...

    def give_up(self, cycle: "RequestResponseCycle") -> None: ...


class Taken(NamedTuple):
    """A request that can be answered here."""

    connection: "Connected"
    cycle: "RequestResponseCycle"
    key: ApiKey
    served: Served
    request: InferRequest
    tensors: Tensors
    rows: int
    size: int
    """Bytes of the request."""
    identity: str
    store: bool
    """Whether anything of it may be kept."""
    start: float


class Direct:
    """Answers of one worker process; for its event loop."""

    def __init__(
        self,
        repository: Repository,
        access: Access,
        traffic: Traffic,
        inference: Inference,
        capture: Capture | None,
        max_body: int,
    ) -> None:
        self._repository, self._access, self._traffic = repository, access, traffic
        self._inference, self._capture = inference, capture
        self._most = min(max_body, INLINE_BYTES)
        self._asked: list[Taken] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._head = b""

    def take(self, connection: "Connected", cycle: "RequestResponseCycle") -> bool:
        """Whether the request, which came whole, is answered here."""
        start, scope = time.perf_counter(), cycle.scope
        path = PATH.fullmatch(scope["path"])
        if path is None or scope["method"] != "POST" or len(cycle.body) > self._most:
            return False
        if not connection.ready(cycle):
            return False
        headers = list(scope["headers"])
        fields = dict(headers)
        if len(fields) != len(headers) or not UNUSUAL.isdisjoint(fields):
            return False
        if fields.get(b"content-type", MEDIA_TYPES[0]) not in MEDIA_TYPES:
            return False
        body, length = bytes(cycle.body), fields.get(_LENGTH)
        try:
            key = self._access.keys.authenticate(_text(fields.get(b"authorization")))
            served = self._served(key, path[1], path[2])
            if served is None or not self._access.ledger.allows(key):
                return False
            request = parse(body, _text(length), served.inputs, served.outputs)
        except Exception:  # the application meets it again, and says what is wrong
            return False
        if request.seconds is not None:
            return False
        tensors = request.tensors
        rows = request.rows
        at_once = quick(served, rows)
        if not at_once and key.limits.any:  # which may refuse it once it is charged
            return False
        named = identity(_text(fields.get(b"x-request-id")), request.id)
        store = NO_STORE not in fields.get(b"cache-control", b"").lower()
        size = len(body)
        one = Taken(
            connection, cycle, key, served, request, tensors, rows, size, named, store, start
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        if at_once:
            if not self._asked:
                loop.call_soon(self._answer_some)
            self._asked.append(one)
        else:
            task = loop.create_task(self._answer_later(one, loop.time() + self._inference.seconds))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        return True

    async def _answer_later(self, one: Taken, due: float) -> None:
        served, call = one.served, Call(one.key, one.served, one.size, due, one.store)
        try:
            with self._inference.charged(call, one.rows, again=True):
                found = await self._inference.compute(call, one.tensors)
                content, json_length = render(
                    one.request, served.line, served.number, found.outputs
                )
                self._inference.answered(call, "infer", one.start, one.rows, len(content))
        except Exception:  # the application meets and charges it again, in the time that is left
            one.cycle.scope[DUE] = due  # type: ignore[literal-required]
            one.connection.give_up(one.cycle)
            return
        cache = "" if found.hit is None else f"{CACHE}: {'hit' if found.hit else 'miss'}\r\n"
        self._write(one, content, json_length, cache)
        self._note(one, time.perf_counter() - one.start)

    def _served(self, key: ApiKey, name: str, number: str | None) -> Served | None:
        """The version that answers, where that takes no more than looking it up."""
        if not key.allows("predict", name):
            return None
        line = self._repository.line(name)
        if line.trials or (number is not None and number in line.idle):
            return None
        return self._repository.get(name, number)

    def _answer_some(self) -> None:
        """Answer for as long as a network may hold the event loop, which writes only after that."""
        asked, count, seconds = self._asked, 0, 0.0
        answered: list[tuple[Taken, float]] = []
        try:
            for batch in _batches(asked):
                count += len(batch)
                answered += self._answer(batch)
                seconds += batch[0].served.row_seconds * sum(one.rows for one in batch)
                if seconds >= INLINE_SECONDS:
                    break
        finally:
            self._asked = asked[count:]
            loop = asyncio.get_running_loop()
            if self._asked:
                loop.call_soon(self._answer_some)
            for one in asked[:count]:
                if not one.cycle.response_complete:
                    one.connection.give_up(one.cycle)
            if answered:
                loop.call_soon(self._note_all, answered)  # once the answers are on their way

    def _answer(self, batch: list[Taken]) -> Iterator[tuple[Taken, float]]:
        """Compute, charge and write what can be; what was answered, and after how many seconds."""
        served = batch[0].served
        ready: list[tuple[Taken, bytes, int | None]] = []
        for one, found in zip(batch, compute(served, batch), strict=True):
            if not isinstance(found, Exception) and one.connection.ready(one.cycle):
                try:
                    ready.append((one, *render(one.request, served.line, served.number, found)))
                except ProtocolError:  # which the application tells
                    continue
        charges = [
            Charge(one.key, served.line, Counts(1, 0, one.rows, one.size, len(content)))
            for one, content, _ in ready
        ]
        allowed = self._access.ledger.take(charges)
        for (one, content, json_length), may in zip(ready, allowed, strict=True):
            if may:
                self._write(one, content, json_length)
                yield one, time.perf_counter() - one.start

    def _note_all(self, answered: list[tuple[Taken, float]]) -> None:
        for one, spent in answered:
            metrics.answers(one.served.line, one.served.number, "infer").add(spent, one.rows)
            self._note(one, spent)

    def _note(self, one: Taken, spent: float) -> None:
        state = {"headers": one.served.headers, "request_id": one.identity, "key": one.key}
        self._traffic.note(state, 200, int(spent * 1e9))
        if self._capture is not None and one.store:
            self._capture.take(one.served, one.tensors)

    def _write(self, one: Taken, content: bytes, json_length: int | None, more: str = "") -> None:
        form = (
            f"content-length: {len(content)}\r\ncontent-type: {JSON}\r\n"
            if json_length is None
            else f"content-length: {len(content)}\r\ncontent-type: {BINARY}\r\n"
            f"{HEADER_LENGTH}: {json_length}\r\n"
        )
        told = f"{more}{form}x-request-id: {one.identity}\r\n\r\n".encode()
        head = self._first(one.connection.server_state.default_headers)
        one.connection.answer(one.cycle, head, one.served.header_lines, told, content)

    def _first(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The status line and uvicorn's headers, of which it makes a new list every second."""
        if headers is not self._default_headers:
            lines = [b"%b: %b\r\n" % header for header in headers]
            self._default_headers, self._head = headers, b"HTTP/1.1 200 OK\r\n" + b"".join(lines)
        return self._head


def _batches(asked: list[Taken]) -> Iterator[list[Taken]]:
    """Requests that are computed together, in the order they came."""
    batch: list[Taken] = []
    rows = 0
    for one in asked:
        if batch and not (
            one.served is batch[0].served
            and rows + one.rows <= one.served.gathered_rows
            and fit(one.tensors, batch[0].tensors)
        ):
            yield batch
            batch, rows = [], 0
        batch.append(one)
        rows += one.rows
    if batch:
        yield batch


def _text(value: Any) -> str | None:
    return None if value is None else str(value, "latin-1")
