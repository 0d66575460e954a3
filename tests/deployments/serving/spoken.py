"""Servers that speak gRPC, and Triton's client of them."""

import queue
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.deployments.serving.server import Server
from tests.deployments.serving.versions import Version

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Spoken:
    """A server that also speaks gRPC, and Triton's client of it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self.client = self.talk()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def talk(self) -> Any:
        """Another client of it."""
        return triton.InferenceServerClient(f"127.0.0.1:{self.port}")

    def infer(self, line: str, given: list[Any], version: str = "", **more: Any) -> Any:
        headers = {**self.server.bearer, **more.pop("headers", {})}
        return self.client.infer(line, given, version, headers=headers, **more)

    def key(self, *scopes: str, tenant: str = "a", **limits: float) -> dict[str, str]:
        """The header that shows a new key."""
        asked = {"tenant": tenant, "scopes": list(scopes), "limits": limits}
        made = self.server.ask("POST", "/v1/keys", asked)
        return {"authorization": f"Bearer {made.json['key']}"}

    def refusal(self, request: Any, **headers: str) -> grpc.RpcError:
        metadata = {**self.server.bearer, **headers}
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.ModelInfer(request, metadata=tuple(metadata.items()))
        return caught.value


def numbers(values: Any) -> Any:
    array = np.array(values, np.float32)
    given = triton.InferInput("numbers", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return given


def message(**changes: Any) -> Any:
    """A request in typed contents, changed."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="numbers", datatype="FP32", shape=[1, 2]
    )
    tensor.contents.fp32_contents.extend([3, 4])
    for name, value in changes.pop("tensor", {}).items():
        if name == "shape":
            del tensor.shape[:]
            tensor.shape.extend(value)
        elif name == "contents":
            tensor.contents.CopyFrom(service_pb2.InferTensorContents(**value))
        else:
            setattr(tensor, name, value)
    return service_pb2.ModelInferRequest(
        **{"model_name": "air-time", "inputs": [tensor], **changes}
    )


@contextmanager
def speaking(
    root: Path, versions: Sequence[tuple[Version, str]], *options: str, **more: Any
) -> Iterator[Spoken]:
    """A server process of these versions, of each line the first one in production."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for version, number in versions:
        version.place(root, number)
    server = Server(root, "--grpc-port", str(port), *options, **more)
    try:
        for version, number in versions:
            assert server.load(version, number).status == 200
        for line, number in {v.line: n for v, n in reversed(versions)}.items():
            assert server.promote(line, number).status == 200
        found = Spoken(server, port)
        yield found
        found.client.close()
        found.channel.close()
    finally:
        assert server.stop() == 0


class Talk:
    """A stream of Triton's client, and what comes of it."""

    def __init__(self, spoken: Spoken, key: dict[str, str] | None = None, **headers: str) -> None:
        self._client = spoken.talk()
        self._found: queue.Queue[tuple[Any, Any]] = queue.Queue()
        given = (spoken.server.bearer if key is None else key) | headers
        self._client.start_stream(self._take, headers=given)

    def _take(self, result: Any, error: Any) -> None:
        self._found.put((result, error))

    def ask(self, values: Any, line: str = "air-time", **more: Any) -> None:
        self._client.async_stream_infer(line, [numbers(values)], **more)

    def answer(self) -> Any:
        """The next answer; raises InferenceServerException for an error."""
        result, error = self._found.get(timeout=60)
        if error is not None:
            raise error
        return result

    def error(self) -> triton.InferenceServerException:
        with pytest.raises(triton.InferenceServerException) as caught:
            self.answer()
        return caught.value

    def predicted(self) -> list[float]:
        found: list[float] = self.answer().as_numpy("prediction").tolist()
        return found

    def rest(self) -> tuple[list[float], str]:
        """What is predicted until the stream is ended, and the words that does so with."""
        found: list[float] = []
        while True:
            try:
                found += self.predicted()
            except triton.InferenceServerException as error:
                assert self.end() == 0
                return found, str(error)

    def end(self, cancel: bool = False) -> int:
        """How many answers there were that nobody has taken."""
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()
        return self._found.qsize()


class Raw:
    """A call over HTTP/2 of our own, whose messages come as slowly as is wanted."""

    def __init__(self, port: int, path: str, fields: Mapping[str, str]) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._read = self.connection.makefile("rb")
        fixed = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "a",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        texts = [(name.encode(), value.encode()) for name, value in {**fixed, **fields}.items()]
        # HPACK's literals, neither indexed nor compressed.
        head = b"".join(b"\x00" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in texts)
        self.connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        self.connection.sendall(_frame(HEADERS, 4, 1, head))

    def send(self, content: bytes) -> None:
        """Some more of the call's data."""
        for at in range(0, len(content), 16_384):
            self.connection.sendall(_frame(DATA, 0, 1, content[at : at + 16_384]))

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Kind, stream and content of the frames that come, until the connection ends."""
        while len(head := self._read.read(9)) == 9:
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            content = self._read.read(int.from_bytes(head[:3]))
            if kind in (SETTINGS, PING) and not flags & 1:
                self.connection.sendall(_frame(kind, 1, 0, content if kind == PING else b""))
            yield kind, stream, content

    def widen(self) -> None:
        """Let the server send some megabytes more, which it otherwise may not."""
        for stream in (0, 1):
            content = (10_000_000).to_bytes(4)
            self.connection.sendall(_frame(WINDOW_UPDATE, 0, stream, content))

    def close(self) -> None:
        self._read.close()
        self.connection.close()


DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def prefixed(size: int, content: bytes) -> bytes:
    """The beginning of a message of so many bytes, as gRPC puts it into the data."""
    return b"\x00" + size.to_bytes(4) + content
