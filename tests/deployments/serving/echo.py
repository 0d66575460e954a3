"""Versions that answer with what they are given, of every datatype; a module: a server finds them.

A version takes one tensor `given` and gives it back as `echo`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.objectives import Regression
from models.tensors import NUMPY, Datatype, TensorSpec
from tests.deployments.serving.datatypes import EveryDatatype
from tests.deployments.serving.versions import Version, assemble, network

BATCHED, UNBATCHED = (-1, 2), (4,)
TEXTS = ("", "x" * 1000, "ü€😀", " ")


class Given(EveryDatatype):
    """One tensor `given`."""

    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="given", datatype=self.datatype, shape=self.shape),)


class Echo(Regression):
    """One tensor `echo`, which is right where it is equal."""

    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(name="echo", datatype=self.datatype, shape=self.shape)

    def closeness(self, found: NDArray[Any], expected: NDArray[Any]) -> float:
        return 0.0 if np.array_equal(found, expected) else float("inf")

    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        return [{"echo": row} for row in output.tolist()]


def values(datatype: str) -> NDArray[Any]:
    """Four values, among them the extreme ones, that no conversion on the way leaves as they are.

    Texts are `str` in an object array.
    """
    dtype = NUMPY[datatype]
    if datatype == "BYTES":
        return np.array(TEXTS, object)
    if datatype == "BOOL":
        return np.array([True, False, False, True])
    if dtype.kind == "f":
        most = np.finfo(dtype)
        return np.array([most.min, most.max, most.smallest_subnormal, np.pi], dtype)
    return np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1], dtype)


def echo_version(datatype: Datatype, shape: tuple[int, ...], tensor: int | None = None) -> Version:
    """A version of the line `echo-<datatype>`; its network is of ONNX's type `tensor`."""
    if tensor is None:
        texts = datatype == "BYTES"
        kind = NUMPY[datatype]
        tensor = TensorProto.STRING if texts else helper.np_dtype_to_tensor_dtype(kind)
    dims = ["n" if length == -1 else length for length in shape]
    model = network(
        [helper.make_node("Identity", ["given"], ["echo"])],
        [helper.make_tensor_value_info("given", tensor, dims)],
        [helper.make_tensor_value_info("echo", tensor, dims)],
    )
    sample = values(datatype).reshape(shape)
    return assemble(
        f"echo-{datatype.lower()}",
        model,
        Given(datatype=datatype, shape=shape),
        Echo(target="y", unit="", datatype=datatype, shape=shape),
        {"given": sample, "echo": sample},
    )
