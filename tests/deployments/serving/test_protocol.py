"""The codec alone: what it accepts becomes exact arrays, everything else is named and refused."""

from typing import Any

import numpy as np
import orjson
import pytest

from deployments.serving.protocol import InferRequest, ProtocolError, Wanted, parse, render
from models.tensors import NUMPY, TensorSpec

NUMBERS = TensorSpec(name="numbers", datatype="FP32", shape=(-1, 2))
CODES = TensorSpec(name="codes", datatype="INT64", shape=(-1, 1))
WORDS = TensorSpec(name="words", datatype="BYTES", shape=(-1,))
OUTPUT = TensorSpec(name="prediction", datatype="FP32", shape=(-1,))


def one(**changes: Any) -> dict[str, Any]:
    """An input that fits NUMBERS, changed; None takes a member away."""
    whole = {"name": "numbers", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]} | changes
    return {name: value for name, value in whole.items() if value is not None}


def read(body: Any, *specs: TensorSpec, raw: bytes = b"") -> InferRequest:
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    length = str(len(text)) if raw else None
    return parse(text + raw, length, specs or (NUMBERS,), (OUTPUT,))


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        read(*args, **more)
    assert caught.value.status == 400
    return caught.value.message


def test_flat_nested_and_binary_data_give_the_same_array() -> None:
    expected = np.array([[1, 2], [3, 4]], np.float32)
    binary = one(data=None, parameters={"binary_data_size": 16})
    for request in (
        read({"inputs": [one()]}),
        read({"inputs": [one(data=[[1, 2], [3.0, 4]])]}),
        read({"inputs": [binary]}, raw=expected.tobytes()),
    ):
        found = request.tensors["numbers"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert found.flags.aligned


@pytest.mark.parametrize("datatype", sorted(set(NUMPY) - {"BYTES"}))
@pytest.mark.parametrize("padding", range(8))
def test_every_datatype_travels_both_ways_in_binary(datatype: str, padding: int) -> None:
    spec = TensorSpec.model_validate({"name": "x", "datatype": datatype, "shape": (-1, 3)})
    given = np.array([[0, 1, 1], [1, 0, 1]]).astype(spec.dtype)
    parameters = {"binary_data_size": given.nbytes}
    header = {"name": "x", "datatype": datatype, "shape": [2, 3], "parameters": parameters}
    text = orjson.dumps({"inputs": [header], "pad": "." * padding})
    found = read(text, spec, raw=given.tobytes()).tensors["x"]
    assert found.dtype == given.dtype
    assert found.flags.aligned
    np.testing.assert_array_equal(found, given)

    body, length = render(InferRequest("7", {}, [Wanted(spec, True)]), "m", "3", {"x": found})
    assert length is not None
    head = orjson.loads(body[:length])
    assert (head["id"], head["model_name"], head["model_version"]) == ("7", "m", "3")
    assert head["outputs"][0]["parameters"] == {"binary_data_size": given.nbytes}
    assert body[length:] == given.tobytes()

    body, length = render(InferRequest(None, {}, [Wanted(spec, False)]), "m", "3", {"x": found})
    assert length is None
    (output,) = orjson.loads(body)["outputs"]
    np.testing.assert_array_equal(np.array(output["data"], spec.dtype).reshape(2, 3), given)


def test_bytes_travel_both_ways_in_both_forms() -> None:
    texts = ["", "a", "Zürich 漢"]
    header = {"name": "words", "datatype": "BYTES", "shape": [3]}
    contents = [t.encode() for t in texts]
    raw = b"".join(len(c).to_bytes(4, "little") + c for c in contents)
    binary = header | {"parameters": {"binary_data_size": len(raw)}}
    for request in (
        read({"inputs": [header | {"data": texts}]}, WORDS),
        read({"inputs": [binary]}, WORDS, raw=raw),
    ):
        found = request.tensors["words"]
        assert found.tolist() == texts
        for as_binary in (True, False):
            asked = InferRequest(None, {}, [Wanted(WORDS, as_binary)])
            body, length = render(asked, "m", "1", {"words": found})
            if as_binary:
                assert body[length:] == raw
            else:
                assert orjson.loads(body)["outputs"][0]["data"] == texts


def test_null_is_nan_in_both_directions() -> None:
    found = read({"inputs": [one(data=[None, 1, 2, 3])]}).tensors["numbers"]
    assert np.isnan(found[0, 0])
    body, _ = render(InferRequest(None, {}, [Wanted(NUMBERS, False)]), "m", "1", {"numbers": found})
    assert orjson.loads(body)["outputs"][0]["data"] == [None, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused_in_json_alone(datatype: Any, value: float) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
    found = {"x": np.array([0, value, np.nan], NUMPY[datatype]), "numbers": np.zeros((1, 2))}
    with pytest.raises(ProtocolError, match="output 'x' is not finite: .*binary_data") as caught:
        render(InferRequest(None, {}, [Wanted(spec, False)]), "m", "1", found)
    assert (caught.value.status, caught.value.code) == (422, "not_finite")
    both = [Wanted(spec, True), Wanted(NUMBERS, False)]
    body, length = render(InferRequest(None, {}, both), "m", "1", found)
    assert body[length:] == found["x"].tobytes()


def test_a_tensor_of_fixed_length_says_nothing_of_the_rows() -> None:
    fixed = TensorSpec(name="fixed", datatype="FP32", shape=(1,))
    given = {"name": "fixed", "datatype": "FP32", "shape": [1], "data": [1]}
    request = read({"inputs": [given, one()]}, fixed, NUMBERS)
    assert list(request.tensors) == ["fixed", "numbers"]
    assert request.rows == 2


def test_outputs_are_chosen_one_by_one() -> None:
    def binary(**request: Any) -> bool:
        return read({"inputs": [one()], **request}).outputs[0].binary

    everywhere = {"binary_data_output": True}
    assert not binary()
    assert not binary(outputs=[])
    assert binary(parameters=everywhere)
    assert binary(outputs=[{"name": "prediction", "parameters": {"binary_data": True}}])
    refused = [{"name": "prediction", "parameters": {"binary_data": False}}]
    assert not binary(outputs=refused, parameters=everywhere)


def test_inputs_may_come_in_any_order_and_mix_forms() -> None:
    codes = {"name": "codes", "datatype": "INT64", "shape": [2, 1], "data": [7, -8]}
    binary = one(data=None, parameters={"binary_data_size": 16})
    raw = np.zeros((2, 2), np.float32).tobytes()
    found = read({"inputs": [codes, binary]}, NUMBERS, CODES, raw=raw).tensors
    assert list(found) == ["numbers", "codes"]
    assert found["codes"].tolist() == [[7], [-8]]


SIZE = {"parameters": {"binary_data_size": 16}}
MALFORMED: list[tuple[Any, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "must be a JSON object"),
    (b'{"inputs": [NaN]}', "not JSON"),
    (b"[" * 5000, "not JSON"),
    ({}, "inputs must be a list"),
    ({"inputs": {}}, "inputs must be a list"),
    ({"inputs": []}, "missing input numbers"),
    ({"inputs": [3]}, "with a name"),
    ({"inputs": [one(name=None)]}, "with a name"),
    ({"inputs": [one(name=["numbers"])]}, "with a name"),
    ({"inputs": [one(name="other")]}, "unknown input 'other'"),
    ({"inputs": [one(), one()]}, "given twice"),
    ({"inputs": [one()], "id": 3}, "id must be a string"),
    ({"inputs": [one(datatype=None)]}, "must have datatype FP32"),
    ({"inputs": [one(datatype="FP64")]}, "must have datatype FP32"),
    ({"inputs": [one(shape=None)]}, "shape must be a list"),
    ({"inputs": [one(shape="2,2")]}, "shape must be a list"),
    ({"inputs": [one(shape=[2.0, 2])]}, "shape must be a list"),
    ({"inputs": [one(shape=[True, 2])]}, "shape must be a list"),
    ({"inputs": [one(shape=[4])]}, "has shape"),
    ({"inputs": [one(shape=[2, 2, 1])]}, "has shape"),
    ({"inputs": [one(shape=[4, 1])]}, "has shape"),
    ({"inputs": [one(shape=[-1, 2])]}, "has shape"),
    ({"inputs": [one(shape=[0, 2], data=[])]}, "has shape"),
    ({"inputs": [one(shape=[2**63, 2])]}, "4 values, not 18446744073709551616"),
    ({"inputs": [one(data=None)]}, "as a list"),
    ({"inputs": [one(data="1234")]}, "as a list"),
    ({"inputs": [one(data=[1, 2, 3])]}, "3 values, not 4"),
    ({"inputs": [one(data=[1, 2, 3, 4, 5])]}, "5 values, not 4"),
    ({"inputs": [one(data=[])]}, "0 values, not 4"),
    ({"inputs": [one(data=[[1, 2], [3]])]}, "do not have that shape"),
    ({"inputs": [one(data=[[1, 2], 3])]}, "do not have that shape"),
    ({"inputs": [one(data=[[1, 2, 3, 4]])]}, "1 rows, not 2"),
    ({"inputs": [one(data=[[[1], [2]], [[3], [4]]])]}, "of another type"),
    ({"inputs": [one(data=[1, 2, 3, "4"])]}, "of another type"),
    ({"inputs": [one(data=[1, 2, 3, True])]}, "of another type"),
    ({"inputs": [one(data=[1, 2, 3, {}])]}, "of another type"),
    ({"inputs": [one(data=[1, 2, 3, 1e39])]}, "out of range"),
    ({"inputs": [one(parameters=[])]}, "parameters of input 'numbers'"),
    ({"inputs": [one(**SIZE)]}, "both data and binary_data_size"),
    ({"inputs": [one(data=None, **SIZE)]}, "is cut short: 16 bytes announced, 0 left"),
    ({"inputs": [one(data=None, parameters={"binary_data_size": -1})]}, "not a number of bytes"),
    ({"inputs": [one(data=None, parameters={"binary_data_size": "9"})]}, "not a number of bytes"),
    ({"inputs": [one(data=None, parameters={"binary_data_size": True})]}, "not a number of bytes"),
    ({"inputs": [one()], "outputs": {}}, "outputs must be a list"),
    ({"inputs": [one()], "outputs": [{"name": "other"}]}, "unknown output"),
    ({"inputs": [one()], "outputs": ["prediction"]}, "unknown output"),
    ({"inputs": [one()], "outputs": [{"name": "prediction"}] * 2}, "asked for twice"),
    ({"inputs": [one()], "parameters": {"binary_data_output": 1}}, "must be true or false"),
    ({"inputs": [one()], "parameters": 1}, "parameters of the request"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_a_malformed_request_is_refused(body: Any, message: str) -> None:
    assert message in refusal(body)


@pytest.mark.parametrize("value", [1.5, "1", None, True, 2**63, [[1]]])
def test_whole_numbers_are_never_converted(value: Any) -> None:
    codes = {"name": "codes", "datatype": "INT64", "shape": [1, 1], "data": [value]}
    assert "data must hold INT64" in refusal({"inputs": [codes]}, CODES)


@pytest.mark.parametrize("value", [256, -1])
def test_a_small_whole_number_does_not_wrap_round(value: int) -> None:
    spec = TensorSpec(name="x", datatype="UINT8", shape=(-1,))
    given = {"name": "x", "datatype": "UINT8", "shape": [1], "data": [value]}
    assert "out of range" in refusal({"inputs": [given]}, spec)


@pytest.mark.parametrize("datatype", sorted(set(NUMPY) - {"BYTES", "BOOL"}))
def test_numbers_are_exact_and_no_truth_is_among_them(datatype: str) -> None:
    spec = TensorSpec.model_validate({"name": "x", "datatype": datatype, "shape": (-1,)})
    floating = datatype.startswith("FP")
    if floating:
        limits = np.finfo(NUMPY[datatype])
        some = [float(limits.max), float(limits.tiny) / 3, -0.0, 0.1, 3]
    else:
        some = [int(np.iinfo(NUMPY[datatype]).min), int(np.iinfo(NUMPY[datatype]).max), 7]
    # Among many short ones, of which the text tells whether there is a truth, and alone.
    for given in (some, some + [1, 0] * 500):
        one = {"name": "x", "datatype": datatype, "shape": [len(given)], "data": given}
        expected = np.array(given, NUMPY[datatype])
        for said in ({}, {"parameters": {"binary_data_output": True}}):
            found = read({"inputs": [one], **said}, spec).tensors["x"]
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()
        for wrong in (True, False, "1", 0.5, None)[: 3 if floating else 5]:
            changed = one | {"data": [*given[:-1], wrong]}
            assert "of another type" in refusal({"inputs": [changed]}, spec)
        if floating:
            changed = one | {"data": [*given[:-1], None]}
            found = read({"inputs": [changed]}, spec).tensors["x"]
            assert np.isnan(found[-1])
            assert found[:-1].tobytes() == expected[:-1].tobytes()


def test_rows_must_agree() -> None:
    codes = {"name": "codes", "datatype": "INT64", "shape": [3, 1], "data": [1, 2, 3]}
    message = refusal({"inputs": [one(), codes]}, NUMBERS, CODES)
    assert "different numbers of rows: [2, 3]" in message


@pytest.mark.parametrize(
    ("shape", "size", "sent", "message"),
    [
        ([2, 2], 16, 15, "is cut short: 16 bytes announced, 15 left"),
        ([2, 2], 16, 17, "1 bytes follow the last tensor"),
        ([2, 2], 12, 12, "takes 16 bytes, binary_data_size is 12"),
        ([2**63, 2], 16, 16, "takes 73786976294838206464 bytes"),
        ([1, 2], 16, 16, "takes 8 bytes, binary_data_size is 16"),
    ],
)
def test_binary_sizes_must_agree(shape: list[int], size: int, sent: int, message: str) -> None:
    header = one(shape=shape, data=None, parameters={"binary_data_size": size})
    assert message in refusal({"inputs": [header]}, raw=b"\0" * sent)


@pytest.mark.parametrize(
    ("count", "raw", "message"),
    [
        (1, b"\1\0\0", "is cut short"),
        (1, b"\2\0\0\0a", "is cut short in text 0"),
        (2, b"\1\0\0\0a\0\0\0", "is cut short in text 1"),
        (1, b"\xff\xff\xff\xffab", "is cut short in text 0"),
        (1, b"\1\0\0\0ab", "1 bytes follow the last text"),
        (1, b"\1\0\0\0\xff", "is not UTF-8"),
        (2**62, b"\0\0\0\0", "is cut short"),
    ],
)
def test_binary_texts_must_agree(count: int, raw: bytes, message: str) -> None:
    parameters = {"binary_data_size": len(raw)}
    header = {"name": "words", "datatype": "BYTES", "shape": [count], "parameters": parameters}
    assert message in refusal({"inputs": [header]}, WORDS, raw=raw)


def test_a_bool_is_zero_or_one() -> None:
    spec = TensorSpec(name="x", datatype="BOOL", shape=(-1,))
    parameters = {"binary_data_size": 2}
    header = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": parameters}
    assert "0 or 1" in refusal({"inputs": [header]}, spec, raw=b"\1\2")


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "99", "²", "9" * 5000])
def test_a_wrong_header_length_is_refused(header: str) -> None:
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length") as caught:
        parse(b"{}", header, (NUMBERS,), (OUTPUT,))
    assert caught.value.status == 400
