"""Typed contents become the arrays they stand for, quickly and beside the event loop."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb  # ours has the same names: one a process

from deployments.serving.grpc_asked import Asked
from deployments.serving.grpc_messages import CONTENTS, inputs
from deployments.serving.grpc_wire import MOST_TYPED, check_size
from deployments.serving.http import INLINE_BYTES
from deployments.serving.protocol import ProtocolError
from models.tensors import NUMPY, TensorSpec


def read(datatype: str, values: list[Any], shape: list[int], **others: list[Any]) -> Any:
    message = pb.ModelInferRequest(model_name="line")
    one = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, given in {**others, CONTENTS[datatype]: values}.items():
        getattr(one.contents, field).extend(given)
    # As it came over the wire, with what a newer client may add.
    contents = one.contents.SerializeToString() + b"\x7a\x03new"
    one.contents.ParseFromString(contents)
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, *shape[1:]))
    return inputs(message, [spec])["x"]


def extremes(datatype: str) -> list[Any]:
    if datatype == "BOOL":
        return [True, False]
    if datatype == "BYTES":
        return ["", "größer"]
    dtype = NUMPY[datatype]
    if dtype.kind == "f":
        return [float(np.finfo(dtype).max), float("-inf")]
    return [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]


@pytest.mark.parametrize("datatype", CONTENTS)
def test_every_datatype_in_any_number(datatype: str) -> None:
    values = extremes(datatype) * 30_000
    sent = [value.encode() for value in values] if datatype == "BYTES" else values
    # A field of another type counts for nothing.
    other = {"fp64_contents": [1.0]} if datatype != "FP64" else {"int_contents": [1]}
    array = read(datatype, sent, [30_000, 2], **other)
    assert array.dtype == NUMPY[datatype]
    assert array.shape == (30_000, 2)
    assert array.flags.aligned
    assert array.reshape(-1).tolist() == values


@pytest.mark.parametrize("datatype", CONTENTS)
def test_another_count_is_refused_before_anything_is_converted(datatype: str) -> None:
    value = b"\xff" if datatype == "BYTES" else extremes(datatype)[0]  # which itself is refused
    with pytest.raises(ValueError, match="3 values, not 4$"):
        read(datatype, [value] * 3, [4])


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)],
)
def test_whole_numbers_out_of_range_are_refused(datatype: str, value: int) -> None:
    with pytest.raises(ValueError, match="some values are out of range"):
        read(datatype, [0] * 20_000 + [value], [20_001])


def test_a_text_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="a text is not UTF-8"):
        read("BYTES", [b"\xff"], [1])


class Context:
    """Of a call without metadata and without a deadline."""

    def invocation_metadata(self) -> None:
        return None

    def time_remaining(self) -> None:
        return None


@pytest.mark.parametrize("more", [False, True])
def test_a_large_message_is_read_beside_the_event_loop(more: bool) -> None:
    async def story() -> tuple[int, int]:
        asked = Asked(pb.ModelInferRequest(), Context())
        body = pb.ModelInferRequest(id="x" * (INLINE_BYTES - 4 + more)).SerializeToString()
        await asked.read(body, 60)
        assert asked.size == len(body) == INLINE_BYTES + more
        due = asyncio.get_running_loop().time() + 60
        return len(asked.message.id), await asked.beside(threading.get_ident, due)

    length, thread = asyncio.run(story())
    assert length == INLINE_BYTES - 4 + more
    assert (thread != threading.get_ident()) == more


def typed(count: int) -> bytes:
    """A request with that many whole numbers, a byte each."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="INT64", shape=[count])
    tensor.contents.int64_contents.extend([1] * count)
    found: bytes = pb.ModelInferRequest(id="a", inputs=[tensor]).SerializeToString()
    return found


def test_what_is_large_in_memory_only_is_refused_before_that() -> None:
    most = typed(MOST_TYPED - 200)
    raw = pb.ModelInferRequest(raw_input_contents=[bytes(3 * MOST_TYPED)]).SerializeToString()
    # A message may come in pieces, in any order, with fields nobody knows.
    unknown = b"\xe3\x00\x08\x01\xe4\x00\xe5\x00abcd\xe1\x00abcdefgh\xe0\x00\x80\x01"
    check_size(raw + most + unknown + raw)
    message = pb.ModelInferRequest.FromString(raw + most + unknown + raw)
    assert len(message.inputs[0].contents.int64_contents) == MOST_TYPED - 200
    for body in (typed(MOST_TYPED), raw + most + b"\x2a\x00" * 300, b"\x3a\x00" * MOST_TYPED):
        with pytest.raises(ProtocolError, match="raw_input_contents take more") as caught:
            check_size(body)
        assert (caught.value.status, caught.value.code) == (413, "too_large")


@pytest.mark.parametrize("end", [b"\xff", b"\x2a", b"\x2a\x02a", b"\x3f", b"\x80" * 10 + b"\x01"])
def test_a_large_message_that_is_none_is_not_read_on(end: bytes) -> None:
    body = pb.ModelInferRequest(raw_input_contents=[bytes(MOST_TYPED)]).SerializeToString()
    with pytest.raises(DecodeError):
        pb.ModelInferRequest.FromString(body + end)
    with pytest.raises(DecodeError):
        check_size(body + end)
