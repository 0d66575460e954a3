"""Versions of a network with two outputs; a module: a server finds their objective."""

import numpy as np
from onnx import TensorProto, helper

from models.objectives import Regression
from models.tables import FittedNumber, TableFeatures
from models.tensors import TensorSpec
from tests.deployments.serving.versions import Version, assemble, network


class Pair(Regression):
    """A number and the two parts it is the sum of."""

    @property
    def further(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="parts", datatype="FP64", shape=(-1, 2)),)


def pair_version(centred: bool = False) -> Version:
    """parts = [distance, 2 hour], less the mean of all rows where `centred`; prediction = their sum
    without that."""
    nodes = [
        helper.make_node("Mul", ["numbers", "w"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["prediction"], keepdims=0),
        helper.make_node("ReduceMean", ["weighted"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["weighted", "mean"], ["apart"]),
        helper.make_node("Cast", ["apart" if centred else "weighted"], ["parts"], to=11),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2])],
        [
            # Not in the order of the signature.
            helper.make_tensor_value_info("parts", TensorProto.DOUBLE, ["n", 2]),
            helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"]),
        ],
        w=np.array([[1.0, 2.0]], np.float32),
        one=np.array([1], np.int64),
    )
    parts = [FittedNumber(name=name, unit="", mean=0, deviation=1) for name in ("distance", "hour")]
    features = TableFeatures(numbers=tuple(parts), categories=())
    numbers = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    sample = {"numbers": numbers, "prediction": numbers @ np.array([1, 2], np.float32)}
    return assemble("pairs", model, features, Pair(target="y", unit=""), sample)
