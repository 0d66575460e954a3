"""Tensors of gRPC's messages, in raw contents or in typed ones; the checks are those of HTTP."""

from collections.abc import Sequence
from typing import Any

from deployments.serving.elements import check_shape, from_binary, from_json
from deployments.serving.protocol import Tensors, Wanted, complete, declared
from models.tensors import TensorSpec

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""The field that holds a datatype's values; FP16 has raw contents only."""


def inputs(message: Any, specs: Sequence[TensorSpec]) -> Tensors:
    """The tensors of a ModelInferRequest, checked and in declared order; raises ValueError."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ValueError(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    found: Tensors = {}
    for index, one in enumerate(message.inputs):
        spec = declared(one.name, specs, found)
        what = f"input {spec.name!r}"
        if one.datatype != spec.datatype:
            raise ValueError(f"{what} must have datatype {spec.datatype}")
        shape = check_shape(list(one.shape), spec)
        if raw:
            if one.contents.ListFields():
                raise ValueError(f"{what} has both contents and raw contents")
            found[spec.name] = from_binary(raw[index], 0, len(raw[index]), shape, spec)
            continue
        field = CONTENTS.get(spec.datatype)
        if field is None:
            raise ValueError(f"{what}: {spec.datatype} takes raw contents")
        values = list(getattr(one.contents, field))
        if spec.datatype == "BYTES":
            values = [_text(value, what) for value in values]
        found[spec.name] = from_json(values, shape, spec)
    return complete(found, specs)


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what}: a text is not UTF-8") from None


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
    if any("classification" in one.parameters for one in message.outputs):
        raise ValueError("the classification extension is not supported")
    return [Wanted(offered[name], True) for name in names]
