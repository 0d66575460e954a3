"""What is wrong about a request over HTTP, whatever it holds, on every route that computes.

Each is refused with a code and the request's id, and nothing of our inside; the same process goes
on, and another tenant is answered in between. What is no HTTP at all is in `test_limits.py`, bodies
that do not come in time in `test_app.py`.
"""

import gzip
import time
from typing import Any

import orjson
import psutil
import pytest

from tests.deployments.serving.bad import (
    EXPLAIN,
    INFER,
    PREDICT,
    RECORD,
    ROW,
    WEBSOCKET,
    Bad,
    Table,
    answered,
    key,
    raw,
    refused,
    response,
    send,
    told,
    unharmed,
)  # fmt: skip

ROUTES = {INFER: {"inputs": [ROW]}, PREDICT: RECORD, EXPLAIN: RECORD}


def bomb(spaces: int) -> bytes:
    return gzip.compress(b" " * spaces, 1)


def wrong(path: str) -> Table:
    """Every such request of a route, which would be answered were it right."""
    body = ROUTES[path]
    packed = {"content-encoding": "gzip"}

    def of(part: str, *statuses: int) -> Bad:
        return Bad(path.replace("/air-time/", f"/{part}/"), body, statuses)

    def shown(authorization: str) -> Bad:
        return Bad(path, body, (401,), {"authorization": authorization})

    return {
        "no key": shown(""),
        "a key of elsewhere": shown(f"Bearer mm_{'0' * 12}_{'A' * 43}"),
        "a key that is none": shown("Bearer " + "x" * 5000),
        "another scheme": shown("Basic bW06bW0="),
        "an unknown line": of("nobody", 404),
        "an unknown version": of("air-time/versions/9", 404),
        "no version": of("air-time/versions/x", 400, 404),
        "a version of elsewhere": of("air-time/versions/..%2f..%2f1", 404),
        "a path of elsewhere": of("..%2f..%2fetc%2fpasswd", 400, 404),
        "a path that goes up": of("air-time/../../../../etc/passwd", 404),
        "a path with a zero": of("air-time%00", 400, 404),
        "a path of two lines": of("air-time%0d%0ax:%20y", 400, 404),
        "dots that are too long": of("%c0%ae%c0%ae", 400, 404),
        "8,000 letters": of("a" * 8000, 400, 404),
        "a file": Bad("/../../etc/passwd", None, (404,), method="GET"),
        "a method": Bad(path, None, (405,), method="GET"),
        "a method of another protocol": Bad(path, None, (405,), method="PROPFIND"),
        "a gzip bomb": lambda: Bad(path, bomb(10**8), (413,), packed),
        "a bomb in a bomb": lambda: Bad(path, gzip.compress(bomb(10**7)), (400,), packed),
        "half a stream": Bad(path, gzip.compress(orjson.dumps(body))[:-9], (400,), packed),
        "another encoding": Bad(path, body, (415,), {"content-encoding": "br"}),
        "another content": Bad(path, b"abc", (400, 415), {"content-type": "image/x-abc"}),
        "no deadline": Bad(path, body, (400,), {"modelmint-timeout-ms": "-1"}),
        "a WebSocket": Bad(path, None, (405,), WEBSOCKET, "GET"),
    }


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("what", wrong(INFER))
def test_it_is_refused_and_the_server_goes_on(
    exposed: Any, quiet: dict[str, str], what: str, path: str
) -> None:
    found = wrong(path)[what]
    assert refused(exposed, quiet, found() if callable(found) else found)


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"content-length: -5\r\n\r\n", 400, "invalid_http"),
        (b"content-length: 99999999999999999999999\r\n\r\n", 400, "invalid_http"),
        (b"content-length: 9223372036854775807\r\n\r\n", 413, "too_large"),
        (b"content-length: 16000001\r\n\r\n", 413, "too_large"),
        (b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400, "invalid_http"),
        (b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400, "invalid_http"),
        (CHUNKED + b"-5\r\n", 400, "invalid_http"),
        (CHUNKED + b"fffffffffffffffff\r\n", 400, "invalid_http"),
        (CHUNKED + b"zz\r\n", 400, "invalid_http"),
        (CHUNKED + b"1\r\nabc\r\n", 400, "invalid_http"),
    ],
)
def test_a_length_that_lies_is_refused(
    exposed: Any, quiet: dict[str, str], path: str, head: bytes, status: int, code: str
) -> None:
    with unharmed(exposed, quiet), raw(exposed, f"POST {path} HTTP/1.1", head) as connection:
        answered(exposed, quiet)
        answer = response(connection)
        assert told(exposed, answer, status) == code
        assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("path", ROUTES)
def test_a_length_shorter_than_the_body_cuts_it_off(
    exposed: Any, quiet: dict[str, str], path: str
) -> None:
    body = orjson.dumps(ROUTES[path])
    lie = b"content-length: %d\r\n\r\n" % (len(body) - 5)
    with unharmed(exposed, quiet), raw(exposed, f"POST {path} HTTP/1.1", lie, body) as connection:
        answered(exposed, quiet)
        # What is left over is no request, and nothing comes after that.
        assert told(exposed, response(connection), 400) in ("invalid_request", "refused_request")
        rest = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert rest == b"" or b'"code":"invalid_http"' in rest


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_does_not_come_keeps_nobody_waiting(
    exposed: Any, quiet: dict[str, str], path: str
) -> None:
    head = b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n"
    with unharmed(exposed, quiet), raw(exposed, f"POST {path} HTTP/1.1", head) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{")
        answered(exposed, quiet)


FLOODS = {
    "trailers": (b"5\r\n{    \r\n0\r\n", b"x: yyyy\r\n" * 7000),
    "one trailer": (b"5\r\n{    \r\n0\r\nx: ", b"y" * 65_536),
    "an extension": (b"5;", b"a" * 65_536),
    "a size": (b"", b"0" * 65_536),
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_that_is_no_body_is_cut_off(
    exposed: Any, quiet: dict[str, str], path: str, what: str
) -> None:
    begin, flood = FLOODS[what]
    process = psutil.Process(exposed.process.pid)
    with unharmed(exposed, quiet):
        before = process.memory_info().rss
        with raw(exposed, f"POST {path} HTTP/1.1", CHUNKED + begin) as connection:
            answered(exposed, quiet)
            with pytest.raises(ConnectionError):
                connection.sendall(flood * 2000)
        assert process.memory_info().rss - before < 50_000_000


@pytest.mark.parametrize("path", ROUTES)
def test_a_flood_of_trailers_is_told_when_it_ends_in_time(
    exposed: Any, quiet: dict[str, str], path: str
) -> None:
    begin = CHUNKED + b"1\r\n{\r\n0\r\n"
    with unharmed(exposed, quiet), raw(exposed, f"POST {path} HTTP/1.1", begin) as connection:
        answered(exposed, quiet)  # the headers were read: what comes now comes by itself
        # One over and nothing behind it: unread bytes would let the kernel reset the connection.
        connection.sendall(b"x: y\r\n" * 10_925)
        assert told(exposed, response(connection), 413) == "too_large"


@pytest.mark.parametrize("path", ROUTES)
def test_tiny_chunks_are_one_body_and_trailers_change_nothing(
    exposed: Any, quiet: dict[str, str], path: str
) -> None:
    body = orjson.dumps(ROUTES[path]) + b" " * 50_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    trailers = b"0\r\nmodelmint-timeout-ms: -1\r\ncontent-type: a/b\r\nx-request-id: it\r\n\r\n"
    parts = CHUNKED, chunks, trailers
    with unharmed(exposed, quiet), raw(exposed, f"POST {path} HTTP/1.1", *parts) as connection:
        answer = response(connection)
        assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize("path", ROUTES)
def test_expired_revoked_and_foreign_keys_stay_outside(
    exposed: Any, quiet: dict[str, str], path: str
) -> None:
    def asked(shown: dict[str, str], status: int, of: str = path) -> str:
        return refused(exposed, quiet, Bad(of, ROUTES[path], (status,), shown))

    foreign = key(exposed, "foreign", "predict:clothes", "read:clothes")
    assert asked(foreign, 403) == "forbidden"
    # Whether a line is there is told to nobody who may not see it.
    assert asked(foreign, 403, path.replace("air-time", "nobody")) == "forbidden"
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
    expiring = key(exposed, "late", "predict:*", expires=soon)
    while send(exposed, Bad(path, ROUTES[path]), **expiring).status == 200:
        pass
    assert asked(expiring, 401) == "expired_key"
    leaving = key(exposed, "leaving", "predict:*")
    assert send(exposed, Bad(path, ROUTES[path]), **leaving).status == 200
    identity = leaving["authorization"].split("_")[1]
    assert exposed.ask("POST", f"/v1/keys/{identity}/revoke", {}).status == 200
    assert asked(leaving, 401) == "revoked_key"


def test_a_canary_of_a_version_nobody_knows_is_refused(exposed: Any, quiet: dict[str, str]) -> None:
    for body in ({"version": "9", "tenant": "quiet"}, {"version": "9", "percent": 1}):
        bad = Bad("/v1/lines/air-time/canary", body, (404,))
        assert refused(exposed, quiet, bad) == "version_not_loaded"
