"""The compressed forms of a network: each is a named function from ONNX bytes to ONNX bytes.

A new form of compression is one more entry in `build`.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from torch import nn

from models.data import Tensors
from models.signature import Signature

OPSET = 20
CALIBRATION_BATCH = 64
# All that lies between two convolutions or products, or else values change type at every layer.
QUANTISED = ["Conv", "MatMul", "Gemm", "Relu", "MaxPool", "AveragePool", "Reshape", "Transpose"]


def build(
    served: nn.Module, signature: Signature, calibration: Tensors
) -> Iterator[tuple[str, bytes]]:
    """Name and ONNX bytes of every candidate, the uncompressed one first."""
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    plain = export(served, signature, calibration)
    yield "fp32", plain
    yield "int8-dynamic", dynamic(plain)
    yield "int8-static", static(plain, calibration)


def export(served: nn.Module, signature: Signature, example: Tensors) -> bytes:
    """The network as ONNX with a free batch dimension, bytes that repeat exactly."""
    names = [spec.name for spec in signature.features.inputs]
    rows = tuple(torch.from_numpy(example[name][:2]) for name in names)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            served,
            rows,
            input_names=names,
            output_names=[signature.objective.output.name],
            dynamic_shapes=(tuple({0: batch} for _ in rows),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return _clean(program.model_proto)


def dynamic(model: bytes) -> bytes:
    """Weights of matrix products in int8, activations quantised at each request.

    Convolutions stay as they are: ONNX Runtime's integer convolution on the CPU is many times
    slower than its float one.
    """
    return _quantised(
        model,
        lambda source, goal: quantization.quantize_dynamic(
            source, goal, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True
        ),
    )


def static(model: bytes, calibration: Tensors) -> bytes:
    """Weights and activations in int8 (QDQ, per channel), ranges from calibration rows."""
    return _quantised(
        model,
        lambda source, goal: quantization.quantize_static(
            source,
            goal,
            _Rows(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            # The head stays float: probabilities in steps of 1/255 are no probabilities.
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            # Seven bits: without VNNI instructions, eight by eight saturate on x86.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        ),
    )


class _Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows in batches, in order."""

    def __init__(self, rows: Tensors) -> None:
        count = len(next(iter(rows.values())))
        starts = range(0, count, CALIBRATION_BATCH)
        self._batches = iter(
            [{n: t[s : s + CALIBRATION_BATCH] for n, t in rows.items()} for s in starts]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def _quantised(model: bytes, quantise: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, goal = Path(folder) / "source.onnx", Path(folder) / "goal.onnx"
        proto = onnx.load_model_from_string(model)
        # Recorded shapes of intermediate values contradict the quantised graph.
        del proto.graph.value_info[:]
        onnx.save_model(proto, source)
        quantise(source, goal)
        return _clean(onnx.load_model(goal))


def _clean(proto: onnx.ModelProto) -> bytes:
    """Serialise without the stack traces and paths that exporters leave behind."""
    proto.producer_version = ""
    del proto.metadata_props[:]
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    return bytes(proto.SerializeToString(deterministic=True))
