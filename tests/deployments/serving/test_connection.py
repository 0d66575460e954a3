"""Small requests that the connection answers by itself, against the application's own answers."""

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from deployments.serving import connection, direct
from deployments.serving.connection import Connection
from tests.deployments.serving.small import GOOD, INFER, Here, answers, request, serving

ELSEWHERE = {"origin": "https://elsewhere"}
"""A header that the application does not mind and the connection leaves to it."""


@pytest.fixture(scope="module")
def server(table: Any, here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with serving(table, here, tmp_path_factory.mktemp("direct")) as found:
        yield found


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
        (orjson.dumps(GOOD | {"id": "my-1"}), {}),
        (orjson.dumps(GOOD | {"id": "my-1"}), {"x-request-id": "mine-1"}),
        (orjson.dumps(GOOD | {"id": "my-1"}), {"x-request-id": "not well-formed"}),
        (orjson.dumps(GOOD | {"id": "not well-formed"}), {}),
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
        named = one.headers.pop("x-request-id")
        given = headers.get("x-request-id"), orjson.loads(body[: int(LENGTH)]).get("id")
        known = [one for one in given if one and " " not in one]
        assert named == known[0] if known else len(named) == 32
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
    line = "*" if code == "rate_limited" else "air-time"
    assert server.used(key, line)["refused"] == 1


def test_what_comes_at_once_is_computed_together(server: Here) -> None:
    key = server.key()
    talks = [server.talk() for _ in range(8)]
    for talk in talks:
        talk.connect()
        # Or else they would be accepted one after another while others are answered.
        ask(talk, INFER, orjson.dumps(GOOD), **key)
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


HUGE = orjson.dumps({"inputs": [GOOD["inputs"][0] | {"data": [3e38, 3e38]}]})


def test_infinity_is_refused_in_json_and_who_is_computed_with_it_is_answered(server: Here) -> None:
    key, other, failed = server.key(), server.key(), list[Any]()
    talks = [server.talk(), server.talk()]
    for talk in talks:
        talk.connect()
        ask(talk, INFER, orjson.dumps(GOOD), **other)
    server.loop.call_soon_threadsafe(
        server.loop.set_exception_handler, lambda _, context: failed.append(context)
    )
    blocked, go = threading.Event(), threading.Event()
    server.loop.call_soon_threadsafe(lambda: (blocked.set(), go.wait(30)))
    assert blocked.wait(30)
    server.batches.clear()
    talks[0].request("POST", INFER, HUGE, key)
    talks[1].request("POST", INFER, orjson.dumps(GOOD), other)
    go.set()
    refused, answered = [talk.getresponse() for talk in talks]
    told = orjson.loads(refused.read())
    assert (refused.status, told["code"]) == (422, "not_finite")
    assert "output 'prediction'" in told["error"]
    assert "binary_data" in told["error"]
    assert (answered.status, server.batches) == (200, [2])
    answered.read()
    raw = orjson.dumps(orjson.loads(HUGE) | {"parameters": {"binary_data_output": True}})
    found = ask(talks[0], INFER, raw, **key)
    for talk in talks:
        talk.close()
    length = int(found.headers["inference-header-content-length"])
    assert np.frombuffer(found.body[length:], np.float32).tolist() == [np.inf]
    used = server.used(key)
    assert (used["requests"], used["bytes_in"]) == (2, len(HUGE) + len(raw))
    server.loop.call_soon_threadsafe(server.loop.set_exception_handler, None)
    assert failed == []


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
