"""A language model behind the real server: prompts continued, and its steps one by one."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from models.digests import canonical_json
from models.language import NextToken
from models.passages import PassageFeatures
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from models.vocabulary import SPECIAL, Characters

VOCABULARY = Characters(known=tuple("abcd"))
PREDICT = "/v1/lines/letters/predict"


def files() -> dict[str, bytes]:
    """A network after which the next letter of the alphabet is likeliest; its state counts runs."""
    size = VOCABULARY.size
    following = np.maximum(np.arange(size) + 1, SPECIAL)
    following[following >= size] = SPECIAL
    likely = np.where(np.arange(size) == following[:, None], 0.7, 0.3 / (size - 1))
    logs = np.log(likely).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["logs", "tokens"], ["log_probabilities"]),
        helper.make_node("Add", ["state", "one"], ["next_state"]),
    ]
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
        [
            numpy_helper.from_array(logs, "logs"),
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    features = PassageFeatures(vocabulary=VOCABULARY, length=8, values=1)
    signature = Signature(features=features, objective=NextToken().beside(features))
    tokens = VOCABULARY.rows(["ab", "dcba"], 9, beginning=True)
    state = np.zeros((2, 1), np.float32)
    sample = {"tokens": tokens, "state": state, "log_probabilities": logs[tokens]}
    return {
        MODEL_FILE: model.SerializeToString(),
        SIGNATURE_FILE: canonical_json(signature.model_dump(mode="json")),
        SAMPLE_FILE: safetensors.numpy.save(sample),
    }


@pytest.fixture(scope="module")
def server(
    begun: Callable[..., Any], sealed: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server of the line `letters`."""
    root = tmp_path_factory.mktemp("writing") / "repository"
    version = sealed("letters", files())
    version.place(root, "1")
    with begun(root) as running:
        assert running.load(version, "1").status == 200
        assert running.promote("letters", "1").status == 200
        yield running


def test_a_prompt_is_continued(server: Any) -> None:
    answer = server.ask("POST", PREDICT, b"ab", content_type="text/plain")
    assert answer.status == 200
    [written] = answer.json["predictions"]
    assert len(written["text"]) == written["characters"] == 200
    assert set(written["text"]) == set("abcd")
    asked = {"prompt": "ab", "characters": 6, "temperature": 0}
    answer = server.ask("POST", PREDICT, asked)
    assert answer.json["predictions"][0]["text"] == "cdabcd"


def test_a_seed_writes_the_same_again_and_another_something_else(server: Any) -> None:
    def text(seed: int) -> str:
        asked = {"prompt": "a", "characters": 80, "temperature": 2, "seed": seed}
        found: str = server.ask("POST", PREDICT, asked).json["predictions"][0]["text"]
        return found

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b'{"prompt": "a", "temperature": 99}', "application/json", "temperature"),
        (b"[1]", "application/json", "the request must be"),
        (b"\xff", "text/plain", "not UTF-8"),
        (b"\x89PNG", "image/png", "neither text/plain nor application/json"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    server: Any, body: bytes, content_type: str, reason: str
) -> None:
    answer = server.ask("POST", PREDICT, body, content_type=content_type)
    assert answer.status == 400
    assert reason in answer.json["error"]


def test_a_step_takes_the_state_and_gives_it_back(server: Any) -> None:
    described = server.ask("GET", "/v2/models/letters").json
    assert [o["name"] for o in described["outputs"]] == ["log_probabilities", "next_state"]
    body = {
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [3, 4]},
            {"name": "state", "datatype": "FP32", "shape": [1, 1], "data": [5]},
        ]
    }
    outputs = server.ask("POST", "/v2/models/letters/infer", body).json["outputs"]
    found = {o["name"]: o for o in outputs}
    assert found["next_state"]["data"] == [6.0]
    assert found["log_probabilities"]["shape"] == [1, 2, VOCABULARY.size]


def test_a_request_to_write_is_charged_as_a_row(server: Any) -> None:
    before = rows(server)
    server.ask("POST", PREDICT, {"prompt": "a", "characters": 3})
    assert rows(server) == before + 1
    assert server.ask("POST", PREDICT, {"prompt": 1}).status == 400
    assert rows(server) == before + 1


def rows(server: Any) -> int:
    """Rows charged for the line so far."""
    found = server.ask("GET", "/v1/usage").json["usage"]
    return sum(entry["rows"] for entry in found if entry["line"] == "letters")
