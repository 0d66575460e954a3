"""A server in this process whose connections answer small requests by themselves."""

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import uvicorn
import uvloop

from deployments.serving import batching, connection, direct, session
from deployments.serving.access import Access
from deployments.serving.app import create
from deployments.serving.connection import Connection
from deployments.serving.direct import Direct
from deployments.serving.inference import DEFAULTS, Settings
from deployments.serving.keys import EVERYTHING, Limits
from deployments.serving.recorder import Recorder
from deployments.serving.repository import Repository
from deployments.serving.traffic import Traffic

INFER = "/v2/models/air-time/infer"
GOOD = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}


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

    def used(self, key: dict[str, str], line: str = "air-time") -> dict[str, int]:
        named = key["authorization"].split("_")[1], line
        usage = self.access.ledger.usage(1)
        [found] = [one for one in usage if (one["key"], one["line"]) == named]
        return found

    def talk(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)


@contextmanager
def serving(table: Any, here: Any, root: Path, settings: Settings = DEFAULTS) -> Iterator[Here]:
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
        app = create(
            repository, access, Recorder(repository), traffic, max_body=100_000, settings=settings
        )
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=Connection, ws="none", log_config=None)
        running = uvicorn.Server(config)
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await running.serve([listening])

        def run() -> None:
            # As it is served: what is written leaves once a turn of the loop has ended.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run)
        thread.start()
        port = listening.getsockname()[1]
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as talk:
            talk.request("GET", "/v2/health/live")
            assert talk.getresponse().status == 200
        yield Here(port, access, loops[0], taken, batches, repository)
        running.should_exit = True
        thread.join()


def request(key: dict[str, str]) -> bytes:
    body = orjson.dumps(GOOD)
    named = "".join(f"{name}: {value}\r\n" for name, value in key.items())
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n{named}"
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
