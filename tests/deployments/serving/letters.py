"""A language model of four letters, whose answers are known by hand."""

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from models.digests import canonical_json
from models.language import NextToken
from models.passages import PassageFeatures
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from models.vocabulary import SPECIAL, Characters

VOCABULARY = Characters(known=tuple("abcd"))


def letters(likely: float = 0.7, slow: bool = False) -> dict[str, bytes]:
    """The files of a network after which the next letter of the alphabet has this probability.

    Its state counts runs; slow, a run takes milliseconds.
    """
    size = VOCABULARY.size
    following = np.maximum(np.arange(size) + 1, SPECIAL)
    following[following >= size] = SPECIAL
    shares = np.where(np.arange(size) == following[:, None], likely, (1 - likely) / (size - 1))
    logs = np.log(shares).astype(np.float32)
    weights = {"logs": logs, "one": np.ones(1, np.float32)}
    nodes = [
        helper.make_node("Gather", ["logs", "tokens"], ["log_probabilities"]),
        helper.make_node("Add", ["state", "one"], ["counted"]),
    ]
    if slow:
        weights |= {
            "spread": np.zeros((1, 2048), np.float32),
            "wide": np.zeros((2048, 2048), np.float32),
            "join": np.zeros((2048, 1), np.float32),
        }
        nodes += [
            helper.make_node("MatMul", ["state", "spread"], ["h0"]),
            *(helper.make_node("MatMul", [f"h{i}", "wide"], [f"h{i + 1}"]) for i in range(4)),
            helper.make_node("MatMul", ["h4", "join"], ["nothing"]),
            helper.make_node("Add", ["counted", "nothing"], ["next_state"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["counted"], ["next_state"]))
    graph = helper.make_graph(
        nodes,
        "letters",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "length"]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["n", "m", size]),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, ["n", 1]),
        ],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    features = PassageFeatures(vocabulary=VOCABULARY, length=8, values=1)
    signature = Signature(features=features, objective=NextToken().beside(features))
    tokens = VOCABULARY.rows(["ab", "dcba"], 9, beginning=True)
    sample = {
        "tokens": tokens, "state": np.zeros((2, 1), np.float32), "log_probabilities": logs[tokens],
    }  # fmt: skip
    return {
        MODEL_FILE: model.SerializeToString(),
        SIGNATURE_FILE: canonical_json(signature.model_dump(mode="json")),
        SAMPLE_FILE: safetensors.numpy.save(sample),
    }
