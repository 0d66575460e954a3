"""Tensors of gRPC's messages, in raw contents or in typed ones; the checks are those of HTTP."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.serving.elements import check_shape, from_binary
from deployments.serving.parameters import check, patience
from deployments.serving.protocol import Tensors, Wanted, complete, declared
from models.tensors import NUMPY, TensorSpec

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""The field that holds a datatype's values; FP16 has raw contents only."""
_FIXED = frozenset(("BOOL", "FP32", "FP64"))
"""Datatypes whose values are one after the other in a message, as they are in memory."""
_STRETCH = 16_384
"""Whole numbers that are converted before other threads get their turn: about two milliseconds."""


def inputs(message: Any, specs: Sequence[TensorSpec]) -> Tensors:
    """The tensors of a ModelInferRequest, checked and in declared order; raises ValueError."""
    check(_given(message), "request", "the request")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ValueError(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    found: Tensors = {}
    for index, one in enumerate(message.inputs):
        spec = declared(one.name, specs, found)
        what = f"input {spec.name!r}"
        check(_given(one), "input", what)
        if one.datatype != spec.datatype:
            raise ValueError(f"{what} must have datatype {spec.datatype}")
        shape = check_shape(list(one.shape), spec)
        if raw:
            if one.contents.ListFields():
                raise ValueError(f"{what} has both contents and raw contents")
            found[spec.name] = from_binary(raw[index], 0, len(raw[index]), shape, spec)
            continue
        found[spec.name] = _typed(one.contents, shape, spec)
    return complete(found, specs)


def _typed(contents: Any, shape: list[int], spec: TensorSpec) -> NDArray[Any]:
    what, field, count = f"input {spec.name!r}", CONTENTS.get(spec.datatype), math.prod(shape)
    if field is None:
        raise ValueError(f"{what}: {spec.datatype} takes raw contents")
    values = getattr(contents, field)
    wanted = f"{what}: data must hold {spec.datatype} values in shape {shape}"
    if len(values) != count:
        raise ValueError(f"{wanted}: {len(values)} values, not {count}")
    if spec.datatype in _FIXED:
        # A Python object for each value takes fifty times as long.
        contents.DiscardUnknownFields()
        for other, _ in contents.ListFields():
            if other.name != field:
                contents.ClearField(other.name)
        packed = contents.SerializeToString()
        size = count * NUMPY[spec.datatype].itemsize
        return from_binary(packed, len(packed) - size, size, shape, spec)
    if spec.datatype == "BYTES":
        texts = np.empty(count, object)
        texts[:] = [_text(value, what) for value in values]
        return texts.reshape(shape)
    array = np.empty(count, NUMPY[spec.datatype])
    try:
        for at in range(0, count, _STRETCH):
            array[at : at + _STRETCH] = values[at : at + _STRETCH]
    except OverflowError:
        raise ValueError(f"{wanted}: some values are out of range") from None
    return array.reshape(shape)


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what}: a text is not UTF-8") from None


def timeout(message: Any) -> float | None:
    """How long the caller of a ModelInferRequest waits by its parameters; raises ValueError."""
    return patience(_given(message))


def _given(owner: Any) -> dict[str, Any]:
    return {
        name: getattr(one, one.WhichOneof("parameter_choice") or "", None)
        for name, one in owner.parameters.items()
    }


def outputs(message: Any, specs: Sequence[TensorSpec]) -> list[Wanted]:
    """The outputs a ModelInferRequest asks for, all where it names none; raises ValueError."""
    if not message.outputs:
        return [Wanted(spec, True) for spec in specs]
    offered = {spec.name: spec for spec in specs}
    names = [one.name for one in message.outputs]
    if unknown := [name for name in names if name not in offered]:
        known = ", ".join(offered)
        raise ValueError(f"unknown output {unknown[0][:80]!r}: the model gives {known}")
    if len(set(names)) != len(names):
        raise ValueError("an output is asked for twice")
    for one in message.outputs:
        check(_given(one), "output", f"output {one.name!r}")
    return [Wanted(offered[name], True) for name in names]
