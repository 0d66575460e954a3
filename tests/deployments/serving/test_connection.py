"""Small requests that the connection answers by itself, against the application's own answers."""

import asyncio
import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
import uvicorn

from deployments.serving import batching, connection, direct, session
from deployments.serving.access import Access
from deployments.serving.app import create
from deployments.serving.connection import Connection
from deployments.serving.direct import Direct
from deployments.serving.keys import EVERYTHING, Limits
from deployments.serving.recorder import Recorder
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
ELSEWHERE = {"origin": "https://elsewhere"}
"""A header that the application does not mind and the connection leaves to it."""


class Here(NamedTuple):
    """A server in this process, of `air-time` 1 (default) and 2; `taken` and `batches` grow."""

    port: int
    access: Access
    loop: asyncio.AbstractEventLoop
    taken: list[bool]
    batches: list[int]
    """Requests computed together."""
    repository: Repository

    def key(self, *scopes: str, **limits: Any) -> dict[str, str]:
        found = self.access.keys.create("t", scopes or EVERYTHING, limits=Limits(**limits))
        return {"authorization": f"Bearer {found[1]}"}

    def used(self, key: dict[str, str]) -> dict[str, int]:
        identity = key["authorization"].split("_")[1]
        [found] = [one for one in self.access.ledger.usage(1) if one["key"] == identity]
        return found

    def talk(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)


@pytest.fixture(scope="module")
def server(table: Any, here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    root: Path = tmp_path_factory.mktemp("direct")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "GATHERED", 1e9)
        patched.setattr(connection, "HELD_SECONDS", 30.0)
        repository = Repository(root, here)
        for number, version in (("1", table()), ("2", table(10.0))):
            version.place(root, number)
            repository.load("air-time", number, version.digest)
        repository.set_default("air-time", "1")
        access = Access(root / ".server")
        traffic = Traffic(repository, access.journal, root / "trials")
        taken: list[bool] = []
        batches: list[int] = []
        take, compute = Direct.take, batching.compute

        def seen(self: Direct, *given: Any) -> bool:
            taken.append(take(self, *given))
            return taken[-1]

        def computed(served: Any, batch: Any) -> Any:
            batches.append(len(batch))
            return compute(served, batch)

        patched.setattr(Direct, "take", seen)
        patched.setattr(direct, "compute", computed)
        app = create(repository, access, Recorder(repository), traffic, max_body=100_000)
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=Connection, ws="none", log_config=None)
        running = uvicorn.Server(config)
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await running.serve([listening])

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        port = listening.getsockname()[1]
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as talk:
            talk.request("GET", "/v2/health/live")
            assert talk.getresponse().status == 200
        yield Here(port, access, loops[0], taken, batches, repository)
        running.should_exit = True
        thread.join()


class Told(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(talk: http.client.HTTPConnection, path: str, body: bytes, **headers: str) -> Told:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    talk.request("POST", path, body, named)
    response = talk.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Told(response.status, found, response.read())


def binary() -> tuple[bytes, str]:
    row = np.array([[3, 4], [5, 6]], np.float32)
    size = {"binary_data_size": row.nbytes}
    one = {"name": "numbers", "datatype": "FP32", "shape": [2, 2], "parameters": size}
    text = orjson.dumps({"inputs": [one], "parameters": {"binary_data_output": True}, "id": "x"})
    return text + row.tobytes(), str(len(text))


BINARY, LENGTH = binary()


@pytest.mark.parametrize("path", [INFER, "/v2/models/air-time/versions/2/infer"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (orjson.dumps(GOOD), {}),
        (orjson.dumps(GOOD), {"content-type": "application/json", "x-request-id": "mine-1"}),
        (orjson.dumps(GOOD), {"content-type": "application/json", "cache-control": "no-store"}),
        (BINARY, {"content-type": "application/octet-stream",
                  "inference-header-content-length": LENGTH}),
    ],
)  # fmt: skip
def test_it_answers_as_the_application_does(
    server: Here, path: str, body: bytes, headers: dict[str, str]
) -> None:
    key = server.key()
    server.taken.clear()
    with contextlib.closing(server.talk()) as talk:
        ours = ask(talk, path, body, **key, **headers)
        mine = server.used(key)
        theirs = ask(talk, path, body, **key, **headers, **ELSEWHERE)
    assert server.taken == [True, False]
    assert ours.status == 200
    for one in (ours, theirs):
        del one.headers["date"]
        if "x-request-id" not in headers:
            assert len(one.headers.pop("x-request-id")) == 32
    assert ours == theirs
    both = server.used(key)
    counted = ("requests", "refused", "rows", "bytes_in", "bytes_out")
    assert [both[name] for name in counted] == [2 * mine[name] for name in counted]
    assert mine["requests"] == 1
    assert mine["bytes_in"] == len(body)
    assert mine["bytes_out"] == len(ours.body)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (INFER, b"{}", {}, 400),
        (INFER, orjson.dumps(GOOD), {"content-type": "text/plain"}, 415),
        (INFER, orjson.dumps(GOOD), {"modelmint-timeout-ms": "x"}, 400),
        (INFER, orjson.dumps(GOOD), {"content-encoding": "br"}, 415),
        (INFER, orjson.dumps(GOOD), {"authorization": "Bearer mm_no_key"}, 401),
        (INFER, b" " * 100_001, {}, 413),
        ("/v2/models/nobody/infer", orjson.dumps(GOOD), {}, 404),
        ("/v2/models/air-time/versions/3/infer", orjson.dumps(GOOD), {}, 404),
    ],
)  # fmt: skip
def test_what_is_no_plain_answer_is_the_applications(
    server: Here, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    key = server.key()
    server.taken.clear()
    with contextlib.closing(server.talk()) as talk:
        found = ask(talk, path, body, **{**key, **headers})
    assert (found.status, True in server.taken) == (status, False)
    assert orjson.loads(found.body)["request_id"]


def test_a_key_of_another_line_is_forbidden(server: Here) -> None:
    with contextlib.closing(server.talk()) as talk:
        assert ask(talk, INFER, orjson.dumps(GOOD), **server.key("predict:other")).status == 403


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"rate": 0.001, "burst": 2}, "rate_limited"),
        ({"daily_rows": 2}, "quota_exceeded"),
        ({"daily_bytes": 2 * len(orjson.dumps(GOOD)) + 200}, "quota_exceeded"),
    ],
)
def test_limits_hold_and_a_refusal_is_counted_once(
    server: Here, limits: dict[str, Any], code: str
) -> None:
    key = server.key(**limits)
    server.taken.clear()
    with contextlib.closing(server.talk()) as talk:
        found = [ask(talk, INFER, orjson.dumps(GOOD), **key) for _ in range(3)]
    assert [one.status for one in found] == [200, 200, 429]
    assert orjson.loads(found[2].body)["code"] == code
    assert server.taken == [True, True, False]
    used = server.used(key)
    assert (used["requests"], used["rows"]) == (2, 2)


def test_what_comes_at_once_is_computed_together(server: Here) -> None:
    key = server.key()
    talks = [server.talk() for _ in range(8)]
    for talk in talks:
        talk.connect()
    ask(talks[0], INFER, orjson.dumps(GOOD), **key)
    server.batches.clear()
    blocked, go = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go.wait(30)

    server.loop.call_soon_threadsafe(block)
    assert blocked.wait(30)
    for at, talk in enumerate(talks):
        one = GOOD["inputs"][0] | {"data": [at, 4], "shape": [1, 2]}
        talk.request("POST", INFER, orjson.dumps({"inputs": [one]}), key)
    go.set()
    found = [orjson.loads(talk.getresponse().read()) for talk in talks]
    for talk in talks:
        talk.close()
    assert [one["outputs"][0]["data"] for one in found] == [[at + 8.0] for at in range(8)]
    assert server.batches == [8]


def test_the_first_are_answered_before_the_last_are_computed(
    server: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = replace(server.repository.default("air-time"), gathered_rows=1)
    monkeypatch.setattr(server.repository, "get", lambda *_: served)
    monkeypatch.setattr(direct, "INLINE_SECONDS", 0.0)
    compute, first, computed = direct.compute, threading.Event(), [0]

    def last_waits(served: Any, batch: Any) -> Any:
        computed[0] += len(batch)
        if computed[0] == 3:
            assert first.wait(30)
        return compute(served, batch)

    key, talks = server.key(), [server.talk() for _ in range(3)]
    for talk in talks:
        talk.connect()
        ask(talk, INFER, orjson.dumps(GOOD), **key)
    monkeypatch.setattr(direct, "compute", last_waits)
    blocked, go = threading.Event(), threading.Event()
    server.loop.call_soon_threadsafe(lambda: (blocked.set(), go.wait(30)))
    assert blocked.wait(30)
    server.taken.clear()
    for talk in talks:
        talk.request("POST", INFER, orjson.dumps(GOOD), key)
    go.set()
    # Which of them came first is the kernel's to say.
    readable, _, _ = select.select([talk.sock for talk in talks], [], [], 10)
    assert readable
    first.set()
    for talk in talks:
        assert orjson.loads(talk.getresponse().read())["outputs"][0]["data"] == [11.0]
        talk.close()
    assert server.taken == [True] * 3


def test_rows_that_may_not_be_joined_are_not(server: Here, monkeypatch: Any) -> None:
    served = server.repository.default("air-time")
    alone = replace(served, gathered_rows=1)
    monkeypatch.setattr(server.repository, "get", lambda *_: alone)
    key, server_batches = server.key(), server.batches
    server_batches.clear()
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(request(key) * 3)
        assert answers(talk, 3) == [[11.0]] * 3
    assert max(server_batches) == 1


def request(key: dict[str, str]) -> bytes:
    body = orjson.dumps(GOOD)
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: {key['authorization']}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def answers(talk: socket.socket, count: int) -> list[Any]:
    """The data of so many responses to requests that were sent over one connection."""
    read = talk.makefile("rb")
    found = []
    for _ in range(count):
        assert read.readline() == b"HTTP/1.1 200 OK\r\n"
        length = 0
        while (line := read.readline()) != b"\r\n":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        found.append(orjson.loads(read.read(length))["outputs"][0]["data"])
    return found


def test_requests_sent_without_waiting_are_answered_in_their_order(server: Here) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(request(server.key()) * 20)
        assert answers(talk, 20) == [[11.0]] * 20


def test_a_large_request_is_the_applications_at_once(server: Here) -> None:
    body = b" " * 90_000 + orjson.dumps(GOOD)
    server.taken.clear()
    with contextlib.closing(server.talk()) as talk:
        found = ask(talk, INFER, body, **server.key())
    assert (found.status, server.taken) == (200, [])


def test_a_slow_request_is_the_applications(server: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELD_SECONDS", 0.0)
    whole = request(server.key())
    server.taken.clear()
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = threading.Event()
        given_up = Connection.give_up

        def give_up(*given: Any) -> None:
            given_up(*given)
            begun.set()

        monkeypatch.setattr(Connection, "give_up", give_up)
        talk.sendall(whole[:-5])
        assert begun.wait(30)
        talk.sendall(whole[-5:])
        assert answers(talk, 1) == [[11.0]]
        assert server.taken == []
        talk.sendall(whole)
        assert answers(talk, 1) == [[11.0]]
    assert server.taken == [True]


def test_a_failure_here_leaves_the_request_to_the_application(
    server: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(direct, "compute", broken)
    with contextlib.closing(server.talk()) as talk:
        found = ask(talk, INFER, orjson.dumps(GOOD), **server.key())
    assert (found.status, orjson.loads(found.body)["outputs"][0]["data"]) == (200, [11.0])


def test_nothing_is_decoded_for_whom_the_day_is_used_up(server: Here) -> None:
    key = server.key(daily_rows=1)
    with contextlib.closing(server.talk()) as talk:
        undecodable = ask(talk, "/v1/lines/air-time/predict", b"no record", **key)
        assert undecodable.status == 400
        assert ask(talk, INFER, orjson.dumps(GOOD), **key).status == 200
        found = ask(talk, "/v1/lines/air-time/predict", b"no record", **key)
    assert (found.status, orjson.loads(found.body)["code"]) == (429, "quota_exceeded")
    assert server.used(key)["refused"] == 1


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
