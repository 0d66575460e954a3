"""The protocol's methods over gRPC, asked by Triton's own client of a real server."""

from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from deployments.serving.elements import pack
from deployments.serving.http import INLINE_BYTES
from tests.deployments.serving.datatypes import EveryDatatype
from tests.deployments.serving.spoken import Spoken, message, numbers


def test_triton_client_infers(spoken: Spoken) -> None:
    for version, bias in (("", 0), ("1", 0), ("2", 10)):
        wanted = [triton.InferRequestedOutput("prediction")]
        found = spoken.infer(
            "air-time", [numbers([[1, 2], [3, 4]])], version, outputs=wanted, request_id="r-1"
        )
        np.testing.assert_array_equal(found.as_numpy("prediction"), [5 + bias, 11 + bias])
        answer = found.get_response()
        assert (answer.id, answer.model_version) == ("r-1", version or "1")


def test_every_datatype_in_raw_contents(spoken: Spoken) -> None:
    given, features = [], EveryDatatype()
    for spec in features.inputs:
        one = triton.InferInput(spec.name, [3, 2], spec.datatype)
        one.set_data_from_numpy(features.tensors(3)[spec.name])
        given.append(one)
    found = spoken.infer("every", given).as_numpy("prediction")
    assert found.tolist() == [len(features.inputs)] * 3


def test_every_datatype_in_typed_contents(spoken: Spoken) -> None:
    fields = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents",
        **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
        **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    }  # fmt: skip
    request = service_pb2.ModelInferRequest(model_name="every")
    half = request.inputs.add(name="fp16", datatype="FP16", shape=[1, 2])
    for spec in EveryDatatype().inputs:
        if spec.datatype != "FP16":
            one = request.inputs.add(name=spec.name, datatype=spec.datatype, shape=[1, 2])
            getattr(one.contents, fields[spec.datatype]).extend([0, 1])
    assert spoken.refusal(request).details() == "input 'fp16': FP16 takes raw contents"
    request.inputs.remove(half)
    # All the others were read.
    assert spoken.refusal(request).details() == "missing input fp16"
    request.inputs[1].contents.uint_contents[1] = 256
    assert "out of range" in spoken.refusal(request).details()


def test_typed_contents_are_answered_in_raw_ones(spoken: Spoken) -> None:
    metadata = tuple(spoken.server.bearer.items())
    answer = spoken.stub.ModelInfer(message(id="x"), metadata=metadata)
    assert answer.raw_output_contents[0] == pack(np.array([11], np.float32))
    assert (answer.outputs[0].name, list(answer.outputs[0].shape)) == ("prediction", [1])


def test_a_large_message_in_typed_contents_is_answered(spoken: Spoken) -> None:
    values = np.arange(24_000, dtype=np.float32)
    large = message(tensor={"shape": [12_000, 2], "contents": {"fp32_contents": values.tolist()}})
    assert large.ByteSize() > INLINE_BYTES
    answer = spoken.stub.ModelInfer(large, metadata=tuple(spoken.server.bearer.items()))
    short = spoken.infer("air-time", [numbers(values.reshape(-1, 2)[:1000])])
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    np.testing.assert_array_equal(found[:1000], short.as_numpy("prediction"))
    assert len(found) == 12_000
    del large.inputs[0].contents.fp32_contents[-1]
    assert "23999 values, not 24000" in spoken.refusal(large).details()


def test_triton_client_reads_metadata(spoken: Spoken) -> None:
    client, headers = spoken.client, spoken.server.bearer
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("air-time", headers=headers)
    assert client.is_model_ready("air-time", "2", headers=headers)
    assert not client.is_model_ready("air-time", "3", headers=headers)
    assert not client.is_model_ready("nothing", headers=headers)
    told = client.get_server_metadata(headers=headers)
    assert told.name == "modelmint"
    assert list(told.extensions) == ["model_repository", "model_stream_infer"]
    found = client.get_model_metadata("air-time", headers=headers)
    assert list(found.versions) == ["1", "2"]
    assert [(i.name, i.datatype, list(i.shape)) for i in found.inputs] == [
        ("numbers", "FP32", [-1, 2])
    ]


RAW = np.array([[3, 4]], np.float32).tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": []}, "missing input numbers"),
        ({"tensor": {"name": "other"}}, "unknown input 'other'"),
        ({"tensor": {"datatype": "FP64"}}, "must have datatype FP32"),
        ({"tensor": {"shape": [-1, 2]}}, "has shape [-1, 2]"),
        ({"tensor": {"shape": [2**62, 2]}}, "2 values, not 9223372036854775808"),
        ({"tensor": {"shape": []}}, "has shape []"),
        ({"tensor": {"contents": {}}}, "0 values, not 2"),
        ({"tensor": {"contents": {"int_contents": [3, 4]}}}, "0 values, not 2"),
        ({"raw_input_contents": [RAW]}, "both contents and raw contents"),
        ({"raw_input_contents": [RAW, RAW]}, "2 raw contents for 1 inputs"),
        ({"tensor": {"contents": {}}, "raw_input_contents": [RAW[:7]]}, "takes 8 bytes"),
        ({"outputs": [{"name": "other"}]}, "unknown output 'other'"),
        ({"outputs": [{"name": "prediction"}] * 2}, "asked for twice"),
        ({"parameters": {"sequence_id": {"string_param": "a"}}}, "the sequence extension"),
        ({"model_version": "../1"}, "is not loaded"),
        ({"model_name": "nothing"}, "no model 'nothing' is loaded"),
    ],
)
def test_a_wrong_request_is_refused(spoken: Spoken, changes: dict[str, Any], words: str) -> None:
    refusal = spoken.refusal(message(**changes))
    missing = "loaded" in words
    assert refusal.code() == grpc.StatusCode[("NOT_FOUND" if missing else "INVALID_ARGUMENT")]
    assert words in refusal.details()
