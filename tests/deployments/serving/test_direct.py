"""Small requests to slow versions, which wait their turn without the application."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.inference import Settings
from deployments.serving.ledger import DAY
from deployments.serving.protocol import ProtocolError, Tensors
from deployments.serving.session import Served
from tests.deployments.serving.small import GOOD, INFER, Here, answers, request, serving


class Held:
    """A session that computes when it is let go; `rows` of every run."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.go, self.begun = threading.Event(), threading.Event()
        self.rows: list[int] = []
        self.refuses = False

    def run(self, names: list[str], feeds: Tensors) -> Any:
        self.begun.set()
        self.rows.append(len(feeds["numbers"]))
        assert self.go.wait(30)
        if self.refuses:
            raise ProtocolError(400, "the model cannot compute these values")
        return self._session.run(names, feeds)


@pytest.fixture(scope="module", params=[30.0], ids=["patient"])
def server(
    request: pytest.FixtureRequest, table: Any, here: Any, tmp_path_factory: Any
) -> Iterator[Here]:
    settings = Settings(slots=1, seconds=request.param)
    with serving(table, here, tmp_path_factory.mktemp("direct"), settings) as found:
        yield found


@pytest.fixture
def held(server: Here, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The session of the version that answers, which takes long and is batched."""
    served = server.repository.default("air-time")
    found = Held(served.session)
    slow: Served = replace(
        served, session=found, inline_rows=0, row_seconds=0.01, batch_rows=8, turn_rows=None
    )  # fmt: skip
    monkeypatch.setattr(server.repository, "get", lambda *_: slow)
    server.taken.clear()
    return found


def body(first: float) -> bytes:
    one = GOOD["inputs"][0] | {"data": [first, 4]}
    return orjson.dumps({"inputs": [one]})


def ask(
    talk: http.client.HTTPConnection, content: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    talk.request("POST", INFER, content, headers)
    response = talk.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    for name in ("date", "x-request-id"):
        del found[name]
    return response.status, found, response.read()


def test_it_answers_as_the_application_does(server: Here, held: Held) -> None:
    held.go.set()
    key, elsewhere = server.key(), {"origin": "https://elsewhere"}
    kept = {"cache-control": "no-store"}
    with contextlib.closing(server.talk()) as talk:
        ours = ask(talk, body(1), key)
        again = ask(talk, body(1), key)
        unkept = ask(talk, body(1), key | kept)
        mine = server.used(key)
        theirs = ask(talk, body(1.5), key | elsewhere)
        theirs_again = ask(talk, body(1.5), key | elsewhere)
        theirs_unkept = ask(talk, body(1.5), key | kept | elsewhere)
    assert server.taken == [True] * 3 + [False] * 3
    assert [one[1].get("modelmint-cache") for one in (ours, again, unkept)] == ["miss", "hit", None]
    for one, other in ((ours, theirs), (again, theirs_again), (unkept, theirs_unkept)):
        assert one[:2] == other[:2]
        assert one[0] == 200
    assert [orjson.loads(one[2])["outputs"][0]["data"] for one in (ours, theirs)] == [[9.0], [9.5]]
    assert held.rows == [1] * 4
    both = server.used(key)
    counted = ("requests", "refused", "rows", "bytes_out")
    assert [both[name] for name in counted] == [2 * mine[name] for name in counted]
    assert (mine["requests"], mine["bytes_in"]) == (3, 3 * len(body(1)))


def test_those_who_wait_are_computed_together(server: Here, held: Held) -> None:
    key = server.key() | {"cache-control": "no-store"}
    talks = [server.talk() for _ in range(5)]
    for at, talk in enumerate(talks):
        talk.request("POST", INFER, body(at), key)
        assert held.begun.wait(30)
    with contextlib.closing(server.talk()) as last:
        # The loop has read the others' once it answers this one, which computes nothing.
        assert ask(last, b"{}", key)[0] == 400
    held.go.set()
    found = [orjson.loads(talk.getresponse().read())["outputs"][0]["data"] for talk in talks]
    for talk in talks:
        talk.close()
    assert found == [[at + 8.0] for at in range(5)]
    assert held.rows == [1, 4]


def test_what_the_network_refuses_is_told_by_the_application(server: Here, held: Held) -> None:
    held.refuses = True
    held.go.set()
    key = server.key()
    with contextlib.closing(server.talk()) as talk:
        status, _, told = ask(talk, body(3), key)
    assert (status, orjson.loads(told)["error"]) == (400, "the model cannot compute these values")
    assert server.taken == [True]
    used = server.used(key)
    assert (used["requests"], used["rows"], used["bytes_in"]) == (0, 0, len(body(3)))


def test_infinity_is_told_by_the_application(server: Here, held: Held) -> None:
    held.go.set()
    key = server.key()
    huge = orjson.dumps({"inputs": [GOOD["inputs"][0] | {"data": [3e38, 3e38]}]})
    with contextlib.closing(server.talk()) as talk:
        status, _, told = ask(talk, huge, key)
    assert (status, orjson.loads(told)["code"]) == (422, "not_finite")
    assert server.taken == [True]
    used = server.used(key)
    assert (used["requests"], used["rows"], used["bytes_in"]) == (1, 1, len(huge))


def test_a_key_with_limits_is_the_applications(server: Here, held: Held) -> None:
    held.go.set()
    key = server.key(daily_rows=1)
    with contextlib.closing(server.talk()) as talk:
        assert [ask(talk, body(at), key)[0] for at in (4, 5)] == [200, 429]
    assert server.taken == [False, False]
    assert server.used(key)["refused"] == 1


def test_one_who_sends_no_http_behind_it_is_answered_and_hung_up_on(
    server: Here, held: Held
) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(request(server.key() | {"cache-control": "no-store"}))
        assert held.begun.wait(30)
        talk.sendall(b"\0" * 20)
        with contextlib.closing(server.talk()) as other:
            assert ask(other, b"{}", server.key())[0] == 400
        held.go.set()
        assert answers(talk, 1) == [[11.0]]
        assert talk.recv(1) == b""


def test_one_who_left_disturbs_nobody(server: Here, held: Held) -> None:
    key = server.key() | {"cache-control": "no-store"}
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as talk:
        talk.sendall(request(key))
        assert held.begun.wait(30)
    held.go.set()
    with contextlib.closing(server.talk()) as talk:
        assert ask(talk, body(6), key)[0] == 200
    assert server.used(key)["rows"] == 2


@pytest.fixture
def midnight(server: Here, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Lets a day begin whose counters cannot be written; what is in their place."""
    ledger, now = server.access.ledger, [time.time()]
    monkeypatch.setattr(ledger, "_now", lambda: now[0])

    def comes() -> Path:
        now[0] += 2 * DAY
        path = ledger._path(int(now[0] // DAY))
        path.mkdir()
        return path

    return comes


def test_one_who_cannot_be_charged_is_told(
    server: Here, held: Held, midnight: Callable[[], Path]
) -> None:
    held.go.set()
    key = server.key()
    path = midnight()
    with contextlib.closing(server.talk()) as talk:
        status, _, told = ask(talk, body(8), key)
    path.rmdir()
    assert (status, orjson.loads(told)["code"]) == (503, "disk")
    assert server.taken == [True]
    assert held.rows == []


@pytest.mark.parametrize("refuses", [False, True], ids=["computed", "refused"])
def test_what_midnight_leaves_unanswered_is_given_back_to_its_day(
    server: Here, held: Held, midnight: Callable[[], Path], refuses: bool
) -> None:
    held.refuses = refuses
    key = server.key() | {"cache-control": "no-store"}
    with contextlib.closing(server.talk()) as talk:
        talk.request("POST", INFER, body(9), key)
        assert held.begun.wait(30)
        path = midnight()
        held.go.set()
        response = talk.getresponse()
        assert (response.status, orjson.loads(response.read())["code"]) == (503, "disk")
    path.rmdir()
    assert held.rows == [1]
    identity = key["authorization"].split("_")[1]
    assert [one for one in server.access.ledger.usage(3) if one["key"] == identity] == []


@pytest.mark.parametrize("server", [0.2], indirect=True, ids=["hasty"])
def test_a_deadline_that_passes_is_told_and_nothing_is_computed_again(
    server: Here, held: Held
) -> None:
    key = server.key()
    with contextlib.closing(server.talk()) as talk:
        status, _, told = ask(talk, body(7), key)
    held.go.set()
    assert (status, orjson.loads(told)["code"]) == (504, "deadline")
    assert held.rows == [1]
    assert server.used(key)["rows"] == 0
