"""What bodies hold together is bounded, and shared among tenants."""

import contextlib
import http.client
import select
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import anyio
import orjson
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from deployments.serving.bodies import Bodies
from deployments.serving.keys import ApiKey
from deployments.serving.protocol import ProtocolError

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
WHOLE = orjson.dumps(GOOD) + b" " * 400_000
SENT = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("bodies") / "repository"
    with begun(root, "--bodies-mb", "1", "--max-body", "500000") as server:
        table().place(root, "1")
        assert server.load(table(), "1").status == 200
        assert server.promote("air-time", "1").status == 200
        yield server
        assert "Traceback" not in server.log


def tenant(server: Any, name: str) -> dict[str, str]:
    asked = {"tenant": name, "scopes": ["predict:*"]}
    return {"authorization": f"Bearer {server.ask('POST', '/v1/keys', asked).json['key']}"}


def begin(server: Any, key: dict[str, str]) -> socket.socket:
    """A connection over which most of a body was sent."""
    talk = socket.create_connection(("127.0.0.1", server.port), 30)
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: {key['authorization']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(WHOLE)}\r\n\r\n"
    talk.sendall(head.encode() + WHOLE[:SENT])
    return talk


def answer(talk: socket.socket) -> tuple[int, dict[str, str], Any]:
    response = http.client.HTTPResponse(talk)
    response.begin()
    return response.status, dict(response.getheaders()), orjson.loads(response.read())


def test_a_tenant_that_sends_slowly_keeps_only_itself_out(server: Any) -> None:
    slow, other = tenant(server, "slow"), tenant(server, "other")
    with contextlib.ExitStack() as held:
        talks = [held.enter_context(begin(server, key)) for key in (slow, tenant(server, "slow"))]
        # Half a megabyte is for one tenant, whatever keys it has; which one is over it is chance.
        [over], _, _ = select.select(talks, [], [], 30)
        status, headers, told = answer(over)
        assert (status, told["code"]) == (429, "overloaded")
        assert (headers["connection"], headers["retry-after"]) == ("close", "1")
        assert server.ask("POST", INFER, GOOD, **slow).status == 200
        sent = {"content_type": "application/json", **other}
        assert server.ask("POST", INFER, WHOLE[:SENT], **sent).status == 200
        [left] = [talk for talk in talks if talk is not over]
        left.sendall(WHOLE[SENT:])
        status, _, told = answer(left)
        assert (status, told["outputs"][0]["data"]) == (200, [11.0])
    # All of it was given back, by the one that was refused too.
    for _ in range(4):
        sent = {"content_type": "application/json", **slow}
        assert server.ask("POST", INFER, WHOLE, **sent).status == 200


def test_who_leaves_lets_go(server: Any) -> None:
    key = tenant(server, "leaves")
    for _ in range(6):
        begin(server, key).close()
    sent = {"content_type": "application/json", **key}
    status = 429
    for _ in range(3000):  # until the last of them has been noticed
        if (status := server.ask("POST", INFER, WHOLE, **sent).status) == 200:
            break
    assert status == 200


def test_what_a_body_unpacks_to_counts_until_it_is_answered() -> None:
    packed = zlib.compress(b" " * 200_000)
    bodies = Bodies(400_000, 30, 0)
    one, other = key_of("one"), key_of("other")

    def asked(key: ApiKey) -> Request:
        async def receive() -> Message:
            return {"type": "http.request", "body": packed, "more_body": False}

        fields = [(b"content-encoding", b"deflate")]
        return Request({"type": "http", "headers": fields, "state": {"key": key}}, receive)

    async def nothing(message: Message) -> None:
        del message

    async def talk() -> None:
        held = [asked(one), asked(one)]
        read = bodies.up_to(400_000)
        for request in held:
            assert len(await read(request)) == 200_000
        with pytest.raises(ProtocolError, match="too much is being sent") as caught:
            await read(refused := asked(one))
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        assert len(await read(asked(other))) == 200_000

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            assert scope in [request.scope for request in (*held, refused)]

        for request in (*held, refused):
            await bodies.released(answer)(request.scope, request.receive, nothing)
        assert len(await read(asked(one))) == 200_000

    anyio.run(talk)


def key_of(name: str) -> ApiKey:
    return ApiKey(id="0" * 12, tenant=name, scopes=("predict:*",), sha256="0" * 64, created=0.0)
