"""Headers have a deadline, and whoever asks nothing is let go."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from deployments.serving import connection
from deployments.serving.connection import Connection
from tests.deployments.serving.small import Here, answers, request, serving


@pytest.fixture(scope="module")
def server(table: Any, here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with serving(table, here, tmp_path_factory.mktemp("direct")) as found:
        yield found


def dripped(server: Here, before: bytes, *parts: bytes) -> bytes:
    """What comes until the server closes, while the parts are sent one by one, and then nothing."""
    found, left = b"", iter(parts)
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        if before:
            talk.sendall(before)
            assert answers(talk, 1) == [[11.0]]
        talk.settimeout(0.02)
        for _ in range(3000):
            try:
                part = talk.recv(65_536)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    talk.sendall(next(left, b""))
                continue
            except ConnectionError:
                return found
            if not part:
                return found
            found += part
    raise AssertionError("the server does not close")


@pytest.mark.parametrize("again", [False, True])
def test_headers_that_drip_are_cut_off(
    server: Here, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    before = request(server.key()) if again else b""
    head = b"GET /v2 HTTP/1.1\r\nx-request-id: slow\r\n" + b"x-more: 1\r\n" * 3000
    found = dripped(server, before, head[:40], *(bytes([one]) for one in head[40:]))
    told, _, body = found.partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in told
    assert orjson.loads(body) == {
        "error": "the headers did not come in time", "code": "timeout", "request_id": "slow",
    }  # fmt: skip


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("part", [b"", b"\r\n"])
def test_who_asks_nothing_is_cut_off(
    server: Here, monkeypatch: pytest.MonkeyPatch, part: bytes, again: bool
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    before = request(server.key()) if again else b""
    # Behind an answer uvicorn's own deadline is for those who send nothing.
    assert dripped(server, before, *[part] * 3000) == b""


def test_a_connection_may_rest_and_a_body_take_longer_than_headers(
    server: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    whole = request(server.key())
    at = whole.index(b"\r\n\r\n") + 10
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        for parts in ((whole,), (whole[:at], whole[at:]), (whole[:30], whole[30:]), (whole,)):
            talk.sendall(parts[0])
            if len(parts) == 2:
                time.sleep(0.6 if len(parts[0]) == at else 0.05)
                talk.sendall(parts[1])
            assert answers(talk, 1) == [[11.0]]
            time.sleep(0.6)


def test_the_next_request_may_begin_long_before_its_turn(
    server: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    go = threading.Event()
    answer = Connection.give_up

    def late(self: Connection, cycle: Any) -> None:
        async def wait() -> None:
            while not go.is_set():
                await asyncio.sleep(0.01)
            answer(self, cycle)

        waiting.append(self.loop.create_task(wait()))

    waiting: list[asyncio.Task[None]] = []
    monkeypatch.setattr(Connection, "give_up", late)
    whole = request(server.key())
    first = whole.replace(b"host: x", b"host: x\r\norigin: https://elsewhere")
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(first + whole[:30])
        time.sleep(0.6)
        go.set()
        assert answers(talk, 1) == [[11.0]]
        talk.sendall(whole[30:])
        assert answers(talk, 1) == [[11.0]]


def test_headers_without_end_are_refused(server: Here) -> None:
    head = b"GET /v2 HTTP/1.1\r\nx-request-id: long\r\nx-long: "
    found = dripped(server, b"", head, *[b"x" * 50_000] * 3000)
    assert found.startswith(b"HTTP/1.1 431 ")
    told = orjson.loads(found.partition(b"\r\n\r\n")[2])
    assert (told["code"], told["request_id"]) == ("too_large", "long")


def test_what_is_right_is_answered_before_what_is_no_http(server: Here) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(request(server.key()) + b"\x16\x03\x01\r\n\r\n")
        assert answers(talk, 1) == [[11.0]]
        with contextlib.suppress(ConnectionError):
            assert talk.recv(65_536) == b""
