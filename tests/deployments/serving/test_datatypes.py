"""Every datatype through Triton's clients, there and back: values come back as they were sent."""

import socket
from collections.abc import Iterator
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from onnx import TensorProto
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from models.tensors import NUMPY, Datatype
from tests.deployments.serving.echo import BATCHED, UNBATCHED, echo_version, values

DATATYPES: tuple[Datatype, ...] = get_args(Datatype)
SHAPES = {"1": BATCHED, "2": UNBATCHED}


class Spoken:
    """A server of all echo lines, and Triton's clients of it."""

    def __init__(self, server: Any, port: int) -> None:
        self.server, self.port = server, port
        self.http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
        self.grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")

    def close(self) -> None:
        self.http.close()
        self.grpc.close()

    def echo(
        self, kind: str, datatype: str, version: str, array: NDArray[Any], **headers: str
    ) -> NDArray[Any]:
        """What comes back over `grpc`, or HTTP in `json`, `binary`, or one there, one back."""
        line, shape = f"echo-{datatype.lower()}", list(array.shape)
        headers = self.server.bearer | headers
        if kind == "grpc":
            given = tritonclient.grpc.InferInput("given", shape, datatype)
            given.set_data_from_numpy(array)
            found = self.grpc.infer(line, [given], version, headers=headers)
        else:
            there, _, back = kind.partition("-")
            given = tritonclient.http.InferInput("given", shape, datatype)
            given.set_data_from_numpy(array, binary_data=there == "binary")
            binary = (back or there) == "binary"
            wanted = tritonclient.http.InferRequestedOutput("echo", binary_data=binary)
            found = self.http.infer(line, [given], version, outputs=[wanted], headers=headers)
        echo: NDArray[Any] = found.as_numpy("echo")
        if datatype == "BYTES":
            texts = [t.decode() if isinstance(t, bytes) else t for t in echo.reshape(-1)]
            return np.array(texts, object).reshape(echo.shape)
        return echo


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Iterator[Spoken]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = tmp_path_factory.mktemp("echo") / "repository"
    server = serve(root, "--grpc-port", str(port))
    try:
        for datatype in DATATYPES:
            for number, shape in SHAPES.items():
                version = echo_version(datatype, shape)
                version.place(root, number)
                answer = server.load(version, number)
                assert answer.status == 200, answer.body
            assert server.promote(version.line, "1").status == 200
        found = Spoken(server, port)
        yield found
        found.close()
    finally:
        assert server.stop() == 0


def same(found: NDArray[Any], sent: NDArray[Any]) -> None:
    assert found.dtype == sent.dtype
    assert found.shape == sent.shape
    # Bits, not values: NaN is equal to NaN, and minus zero not to zero.
    if sent.dtype == object:
        assert found.tolist() == sent.tolist()
    else:
        assert found.tobytes() == sent.tobytes()


KINDS = ("json", "binary", "json-binary", "binary-json", "grpc")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_values_come_back_as_they_were_sent(spoken: Spoken, datatype: str, kind: str) -> None:
    four = values(datatype)
    for version, array in (
        ("", four[:2].reshape(1, 2)),
        ("1", four.reshape(2, 2)),
        ("", np.tile(four, 3).reshape(6, 2)),
        ("2", four),
    ):
        same(spoken.echo(kind, datatype, version, array), array)
        # The application's answer, which the connection's own stands for.
        same(spoken.echo(kind, datatype, version, array, origin="https://elsewhere"), array)


@pytest.mark.parametrize("kind", ["binary", "grpc"])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_is_no_finite_number_comes_back_too(spoken: Spoken, datatype: str, kind: str) -> None:
    array = np.array([[np.nan, -0.0], [np.inf, -np.inf]], NUMPY[datatype])
    same(spoken.echo(kind, datatype, "", array), array)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back_whatever_is_in_them(spoken: Spoken, kind: str) -> None:
    array = np.array([["a\0b", '\n\t"\\'], ["\x7f\u2028", "\U0010ffff"]], object)
    same(spoken.echo(kind, "BYTES", "", array), array)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_metadata_names_the_datatype(spoken: Spoken, datatype: str) -> None:
    line = f"echo-{datatype.lower()}"
    for number, shape in SHAPES.items():
        found = spoken.http.get_model_metadata(line, number, headers=spoken.server.bearer)
        described = {"datatype": datatype, "shape": list(shape)}
        assert found["inputs"] == [{"name": "given"} | described]
        assert found["outputs"] == [{"name": "echo"} | described]


def test_typed_contents_come_back_raw(spoken: Spoken) -> None:
    fields = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
        **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
        **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    }  # fmt: skip
    assert set(fields) == set(DATATYPES) - {"FP16"}  # which has none
    metadata = tuple(spoken.server.bearer.items())
    with tritonclient.grpc.grpc.insecure_channel(f"127.0.0.1:{spoken.port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for datatype, field in fields.items():
            request = service_pb2.ModelInferRequest(model_name=f"echo-{datatype.lower()}")
            one = request.inputs.add(name="given", datatype=datatype, shape=[2, 2])
            sent = values(datatype)
            texts = datatype == "BYTES"
            getattr(one.contents, field).extend(
                [text.encode() for text in sent] if texts else sent.tolist()
            )
            answer = stub.ModelInfer(request, metadata=metadata)
            raw = tritonclient.grpc.InferResult(answer).as_numpy("echo").reshape(-1)
            found = np.array([text.decode() for text in raw], object) if texts else raw
            same(found, sent)


def test_bytes_that_are_no_text_are_refused(spoken: Spoken) -> None:
    array = np.array([[b"\xff", b"x"]], object)
    for kind in ("binary", "grpc"):
        with pytest.raises(InferenceServerException, match="text 0 is not UTF-8"):
            spoken.echo(kind, "BYTES", "", array)


def test_bf16_is_refused_in_a_request_and_in_a_network(spoken: Spoken) -> None:
    for client, kind in ((spoken.http, tritonclient.http), (spoken.grpc, tritonclient.grpc)):
        given = kind.InferInput("given", [1, 2], "BF16")
        given.set_data_from_numpy(np.zeros((1, 2), ml_dtypes.bfloat16))
        with pytest.raises(InferenceServerException, match="must have datatype FP32"):
            client.infer("echo-fp32", [given], headers=spoken.server.bearer)
    version = echo_version("FP16", UNBATCHED, TensorProto.BFLOAT16)
    version.place(spoken.server.root, "9")
    answer = spoken.server.load(version, "9")
    assert (answer.status, answer.json["code"]) == (422, "unfit_version")
    assert "is tensor(bfloat16) [4] in the network, FP16 [4]" in answer.json["error"]
