"""Bad requests, and what must be true of every one of them."""

import http.client
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import orjson
import psutil

from tests.deployments.serving.server import Answer, Server, answer_to

INFER, PREDICT = "/v2/models/air-time/infer", "/v1/lines/air-time/predict"
EXPLAIN = "/v1/lines/air-time/explain"
ROW = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
RECORD = {"distance": 3, "hour": 4}
WEBSOCKET = {
    "upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


class Bad(NamedTuple):
    """A request, and the answers it may get; a dict is sent as JSON."""

    path: str
    body: Any
    statuses: tuple[int, ...] = (400,)
    headers: dict[str, str] = {}
    method: str = "POST"


Table = dict[str, Bad | Callable[[], Bad]]
"""By what is bad; what is large is made when it is sent."""


def key(server: Server, tenant: str, *scopes: str, **more: Any) -> dict[str, str]:
    """The header of a new key."""
    made = server.ask("POST", "/v1/keys", {"tenant": tenant, "scopes": list(scopes), **more})
    assert made.status == 200
    return {"authorization": f"Bearer {made.json['key']}"}


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def huge_image() -> bytes:
    """Under 1 KB, which decodes to over 10 GB."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(b"\0" * 50_000))
    found = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + packed + chunk(b"IEND", b"")
    assert len(found) < 1000
    return found


def send(server: Server, bad: Bad, **more: str) -> Answer:
    """The answer to it, over a connection of its own."""
    with asked(server, bad, **more) as connection:
        return answer_to(connection)


@contextmanager
def asked(server: Server, bad: Bad, **more: str) -> Iterator[http.client.HTTPConnection]:
    """A connection over which it was sent and whose answer was not read yet."""
    body = orjson.dumps(bad.body) if isinstance(bad.body, dict) else bad.body
    with closing(server.connect()) as connection:
        connection.request(bad.method, bad.path, body, {**server.bearer, **bad.headers, **more})
        yield connection


def told(server: Server, answer: Answer, *statuses: int) -> str:
    """Check that an answer refuses and tells nothing of our inside; its code."""
    assert answer.status in statuses, answer
    assert set(answer.json) == {"error", "code", "request_id"}
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert len(answer.body) < 1000
    for inside in ("Traceback", "/serving", ".py", "site-packages", str(server.root)):
        assert inside not in answer.body.decode()
    assert "Traceback" not in server.log
    return str(answer.json["code"])


def answered(server: Server, quiet: dict[str, str]) -> None:
    """Check that somebody who does nothing wrong is answered: tensors, and what is decoded."""
    inferred = server.ask("POST", INFER, {"inputs": [ROW]}, **quiet)
    assert inferred.json["outputs"][0]["data"] == [11.0]
    predicted = server.ask("POST", PREDICT, RECORD, **quiet)
    assert predicted.json["predictions"] == [{"air_time": 11.0, "unit": "min"}]


@contextmanager
def unharmed(server: Server, quiet: dict[str, str]) -> Iterator[None]:
    """Check that another tenant is answered at the end, by the process that was there before."""
    before = psutil.Process(server.process.pid).create_time()
    yield
    answered(server, quiet)
    assert psutil.Process(server.process.pid).create_time() == before


def refused(server: Server, quiet: dict[str, str], bad: Bad) -> str:
    """Check all of that, another tenant being answered in between too; the code."""
    with unharmed(server, quiet), asked(server, bad, **{"x-request-id": "mine"}) as connection:
        answered(server, quiet)
        answer = answer_to(connection)
        assert answer.headers["x-request-id"] == "mine"
        return told(server, answer, *bad.statuses)


@contextmanager
def raw(server: Server, line: str, *parts: bytes) -> Iterator[socket.socket]:
    """A connection over which a request line, our key and hand-made parts were sent."""
    head = f"{line}\r\nhost: x\r\nx-request-id: mine\r\nauthorization: Bearer {server.key}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head.encode())
        for part in parts:
            connection.sendall(part)
        yield connection


def response(connection: socket.socket) -> Answer:
    """What is answered over it."""
    found = http.client.HTTPResponse(connection)
    found.begin()
    headers = {name.lower(): value for name, value in found.getheaders()}
    return Answer(found.status, headers, found.read())
