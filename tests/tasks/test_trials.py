"""A network that ends its process ends no search: ONNX Runtime does so over a GRU in float16."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch

from models import rnn
from models.data import Tensors
from models.language import NextToken
from models.layers import Served
from models.passages import PassageFeatures
from models.signature import Signature
from models.vocabulary import Characters
from tasks import candidates
from tasks.trials import CrashError, Trials

LETTERS = Characters(known=tuple("abcdef"))


@pytest.fixture(scope="module")
def rows() -> Tensors:
    return {
        "tokens": np.ones((3, 9), np.int64),
        "state": np.zeros((3, rnn.Writer(size="tiny").carried()), np.float32),
    }


@pytest.fixture(scope="module")
def plain(rows: Tensors) -> bytes:
    model = rnn.Writer(size="tiny")
    signature = Signature(
        features=PassageFeatures(length=9, vocabulary=LETTERS), objective=NextToken()
    ).served(model)
    assert [spec.name for spec in signature.features.inputs] == list(rows)
    torch.manual_seed(0)
    network = model.build(signature.features, signature.objective.width)
    return candidates.export(Served(network, signature.objective).eval(), signature, rows)


@pytest.fixture
def trials(rows: Tensors) -> Iterator[Trials]:
    with Trials() as found:
        found.begin(rows)
        yield found


def test_a_network_that_ends_its_process_is_told_and_the_next_is_tried(
    trials: Trials, plain: bytes, rows: Tensors
) -> None:
    with pytest.raises(CrashError, match=r"fp16 ends the process that runs it \(SIGSEGV\)"):
        trials.peak("fp16", candidates.quantized("fp16", plain, rows))
    found = trials.peak("fp32", plain)
    assert found is not None
    assert found > 1_000_000


def test_a_network_that_the_runtime_refuses_is_told_with_its_reason(
    trials: Trials, plain: bytes
) -> None:
    model = onnx.load_model_from_string(plain)
    model.graph.node[0].op_type = "Nonesuch"
    with pytest.raises(CrashError, match=r"int8 does not run: .*Nonesuch"):
        trials.peak("int8", model.SerializeToString())


def test_bytes_that_are_no_network_are_told_and_the_next_is_tried(
    trials: Trials, plain: bytes
) -> None:
    with pytest.raises(CrashError, match="int8 does not run: .*Protobuf"):
        trials.peak("int8", b"no network")
    assert trials.peak("fp32", plain)


def test_a_process_of_trials_that_was_killed_is_no_property_of_a_network(
    trials: Trials, plain: bytes
) -> None:
    trials._process.kill()
    trials._process.wait()
    with pytest.raises(MemoryError, match="the process that tries networks was killed"):
        trials.peak("fp32", plain)


def test_what_the_machine_lacks_is_no_property_of_a_network(
    trials: Trials, plain: bytes, rows: Tensors
) -> None:
    """Or another form would be chosen here than where the version is replayed."""
    huge = onnx.load_model_from_string(plain)
    graph = huge.graph
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [1 << 60])
    graph.initializer.append(shape)
    graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["much"]))
    graph.output.append(onnx.helper.make_tensor_value_info("much", onnx.TensorProto.FLOAT, [None]))
    with pytest.raises(MemoryError, match="int8 was not tried"):
        trials.peak("int8", huge.SerializeToString())
