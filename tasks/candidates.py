"""The quantizers: each is a named function from ONNX bytes to ONNX bytes.

A new one is one more case of `quantized`, and its name one of `models.forms.QUANTIZERS`.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from torch import nn

from models.data import Tensors
from models.forms import FormError
from models.padding import pieces
from models.program import Named, ProgramError, exported, is_program
from models.signature import Signature
from models.tensors import TensorSpec
from tasks.inference import REFUSALS, scarce

OPSET = 20
CALIBRATION_BATCH = 64
SMALLEST_CALIBRATION = 16
BLOCK = 32
# All that lies between two convolutions or products, or else values change type at every layer.
QUANTISED = ["Conv", "MatMul", "Gemm", "Relu", "MaxPool", "AveragePool", "Reshape", "Transpose"]


class CalibrationError(FormError):
    """Too few rows to take the ranges of activations from."""


class ExportError(FormError):
    """The network has an operation that ONNX, or `torch.export`, lacks."""


class QuantizerError(FormError):
    """ONNX Runtime's quantizer does not take the network."""


def quantized(name: str, plain: bytes, calibration: Tensors) -> bytes:
    """An exported network by the quantizer of that name; bytes that repeat exactly.

    Raises CalibrationError or QuantizerError.
    """
    if is_program(plain):
        raise QuantizerError("ONNX Runtime does not run the network, so it cannot quantize it")
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    # The quantizers log to the root logger.
    logging.getLogger().setLevel(logging.ERROR)
    match name:
        case "int8-dynamic":
            return dynamic(plain)
        case "int8-static":
            return static(plain, calibration)
        case "int8-weights":
            return weights_only(plain, 8)
        case "int4-weights":
            return weights_only(plain, 4)
        case "fp16":
            return half(plain)
    raise ValueError(f"no quantizer is called {name!r}")


def export(served: nn.Module, signature: Signature, example: Tensors) -> bytes:
    """The network as ONNX, lengths free where the signature has -1, bytes that repeat exactly.

    Raises ExportError.
    """
    rows, shapes = _example(signature, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                served,
                rows,
                input_names=[spec.name for spec in signature.features.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the network is not exported to ONNX: {_reason(error)}") from error
    assert program is not None
    proto = program.model_proto
    for value, spec in zip(proto.graph.output, signature.outputs, strict=True):
        for axis, length in enumerate(spec.shape):
            size = value.type.tensor_type.shape.dim[axis]
            if axis and length == -1 and size.HasField("dim_value"):
                # Of a recurrent layer the exporter records the example's length.
                size.dim_param = f"{spec.name}_{axis}"
    return _clean(proto)


def program(served: nn.Module, signature: Signature, example: Tensors) -> bytes:
    """The network as a program of torch, bytes that repeat exactly; raises ExportError."""
    rows, shapes = _example(signature, example)
    named = Named(inputs=signature.features.inputs, outputs=signature.outputs)
    try:
        return exported(served, rows, shapes, named)
    except ProgramError as error:
        raise ExportError(str(error)) from error


def _example(signature: Signature, example: Tensors) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Two rows, and which of their lengths are free."""
    specs, batch = signature.features.inputs, torch.export.Dim("batch", min=1)
    rows = tuple(torch.from_numpy(example[spec.name][:2]) for spec in specs)
    return rows, (tuple({0: batch, **_free(spec)} for spec in specs),)


def _reason(error: BaseException) -> str:
    """What the exporter met first, without the colours and advice it wraps it in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0][:300]


def _free(spec: TensorSpec) -> dict[int, Any]:
    """What the exporter finds out about the other free lengths of a tensor."""
    return {
        axis: torch.export.Dim.AUTO for axis in range(1, len(spec.shape)) if spec.shape[axis] < 0
    }


def dynamic(model: bytes) -> bytes:
    """Weights of matrix products in int8, activations quantised at each request.

    Convolutions stay as they are: ONNX Runtime's integer convolution on the CPU is many times
    slower than its float one.
    """
    return _quantised(
        model,
        lambda source, goal: quantization.quantize_dynamic(
            source,
            goal,
            op_types_to_quantize=["MatMul", "Gemm", "Gather", "LSTM"],
            per_channel=True,
        ),
    )


def static(model: bytes, calibration: Tensors) -> bytes:
    """Weights and activations in int8 (QDQ, per channel), ranges from calibration rows.

    Raises CalibrationError.
    """
    count = len(next(iter(calibration.values())))
    if count < SMALLEST_CALIBRATION:
        raise CalibrationError(
            f"{count} training rows are too few to calibrate int8-static, which takes"
            f" {SMALLEST_CALIBRATION}: land more, or leave it out of budget.candidates"
        )
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


def weights_only(model: bytes, bits: int) -> bytes:
    """Weights of matrix products in blocks of 32 with a scale each; the rest stays float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    source = ONNXModel(onnx.load_model_from_string(model))
    source.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        source.model,
        bits=bits,
        block_size=BLOCK,
        is_symmetric=True,
        # Products in int8: in float each weight would be unpacked first, four times slower.
        accuracy_level=4,
        op_types_to_quantize=("MatMul",),
    )
    with _library():
        quantizer.process()
    return _clean(quantizer.model.model)


def half(model: bytes) -> bytes:
    """Weights and activations in float16; inputs and outputs stay what the signature says.

    What comes in and goes out passes through float16 too. Beyond 65,504 values are infinite and
    weights cut off: the form collapses.
    The CPU computes products in float32 all the same.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = onnx.load_model_from_string(model)
    with _library(), warnings.catch_warnings():
        # It tells of weights too small for float16; what that costs is measured.
        warnings.simplefilter("ignore")
        return _clean(convert_float_to_float16(source, keep_io_types=True))


class _Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows in batches, in order."""

    def __init__(self, rows: Tensors) -> None:
        self._batches = (part for _, part in pieces(rows, CALIBRATION_BATCH))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


@contextmanager
def _library() -> Iterator[None]:
    """What the library raises for a network it has no words for, as QuantizerError."""
    try:
        yield
    except (RuntimeError, ValueError, *REFUSALS) as error:
        if scarce(error):
            raise
        raise QuantizerError(f"ONNX Runtime cannot quantize it: {error}") from error


def _quantised(model: bytes, quantise: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, goal = Path(folder) / "source.onnx", Path(folder) / "goal.onnx"
        proto = onnx.load_model_from_string(model)
        # Recorded shapes of intermediate values contradict the quantised graph.
        del proto.graph.value_info[:]
        onnx.save_model(proto, source)
        with _library():
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
