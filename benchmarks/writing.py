"""Tokens a second of texts that the model server streams, and what another line pays meanwhile.

    python -m benchmarks.writing [--characters 1000] [--texts 1,8] [--turns 5]

A GRU of the size `verses` has, with made-up weights, on one worker. Beside it the same loop in this
process, without a server, and requests for an image by a caller of its own.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measuring import in_turns, options, publish, ratio
from benchmarks.served import Served, model, modelmint
from models import samples
from models.data import Tensors
from models.generation import Sampling, write
from models.language import NextToken
from models.objectives import Run
from models.passages import PassageFeatures
from models.rnn import WRITERS
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from models.vocabulary import Characters

VOCABULARY = Characters(known=tuple(map(chr, range(32, 127))))
EMBEDDING, STATE, _ = WRITERS["base"]
FEATURES = PassageFeatures(vocabulary=VOCABULARY, length=256, values=STATE)
SIGNATURE = Signature(features=FEATURES, objective=NextToken().beside(FEATURES))
OUTPUTS = [spec.name for spec in SIGNATURE.outputs]
PROMPT = "Call me "


class Writer(NamedTuple):
    """A language model that writes nothing of sense."""

    name: str
    onnx: bytes

    def loaded(self) -> Run:
        """The network as the server runs it: one thread."""
        given = onnxruntime.SessionOptions()
        given.intra_op_num_threads = given.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.onnx, given)
        return lambda tensors: dict(zip(OUTPUTS, session.run(OUTPUTS, tensors), strict=True))

    def files(self) -> dict[str, bytes]:
        """What a version of it holds."""
        sample = encoded("Call me Ishmael")
        sample[OUTPUTS[0]] = self.loaded()(sample)[OUTPUTS[0]]
        return {
            MODEL_FILE: self.onnx,
            SIGNATURE_FILE: SIGNATURE.model_dump_json().encode(),
            SAMPLE_FILE: samples.save(sample),
        }


def writer() -> Writer:
    """The network; its weights are the same every time."""
    random = np.random.default_rng(7)

    def weights(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) / 10).astype(np.float32)

    constants = {
        "embedding": weights(VOCABULARY.size, EMBEDDING),
        "w": weights(1, 3 * STATE, EMBEDDING),
        "r": weights(1, 3 * STATE, STATE),
        "b": weights(1, 6 * STATE),
        "o": weights(STATE, VOCABULARY.size),
        "first": np.array([0]),
        "second": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["e"]),
        helper.make_node("Transpose", ["e"], ["x"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", ["state", "first"], ["before"]),
        helper.make_node(
            "GRU", ["x", "w", "r", "b", "", "before"], ["steps", "after"],
            hidden_size=STATE, linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["steps", "second"], ["h"]),
        helper.make_node("Transpose", ["h"], ["hidden"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["hidden", "o"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["log_probabilities"], axis=-1),
        helper.make_node("Squeeze", ["after", "first"], ["next_state"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    inputs = [
        value("tokens", TensorProto.INT64, ["n", "length"]),
        value("state", TensorProto.FLOAT, ["n", STATE]),
    ]
    outputs = [
        value("log_probabilities", TensorProto.FLOAT, ["n", "m", VOCABULARY.size]),
        value("next_state", TensorProto.FLOAT, ["n", STATE]),
    ]
    kept = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "writer", inputs, outputs, kept)
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(found)
    return Writer("writer", found.SerializeToString())


def encoded(prompt: str) -> Tensors:
    """A prompt as the network takes it."""
    tokens = VOCABULARY.rows([prompt], FEATURES.length + 1, beginning=True)
    return {"tokens": tokens, "state": np.zeros((1, STATE), np.float32)}


def alone(found: Writer, characters: int) -> float:
    """Tokens a second of the loop in this process."""
    run, prompt = found.loaded(), encoded(PROMPT)
    start = time.perf_counter()
    steps = write(run, prompt, OUTPUTS[0], VOCABULARY, Sampling(characters=characters))
    return sum(1 for _ in steps) / (time.perf_counter() - start)


def streamed(server: Served, texts: int, characters: int) -> float:
    """Tokens a second of so many texts at a time, all of them together."""
    asked = {"prompt": PROMPT, "characters": characters, "stream": True}

    with (
        httpx.Client(base_url=server.url, headers=server.headers, timeout=120) as client,
        ThreadPoolExecutor(texts) as callers,
    ):

        def one(seed: int) -> None:
            answer = client.post("/v1/lines/writer/predict", json=asked | {"seed": seed})
            answer.raise_for_status()
            if "event: answer" not in answer.text:
                raise RuntimeError(answer.text[-300:])

        start = time.perf_counter()
        list(callers.map(one, range(texts)))
        return texts * characters / (time.perf_counter() - start)


def images(server: Served, until: threading.Event) -> list[float]:
    """Milliseconds of one request for an image after the other."""
    body, length = model("cnn").binary()
    headers = {**server.headers, "inference-header-content-length": str(length),
               "content-type": "application/octet-stream"}  # fmt: skip
    found = []
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        while not until.is_set():
            start = time.perf_counter()
            client.post("/v2/models/cnn/infer", content=body).raise_for_status()
            found.append(1000 * (time.perf_counter() - start))
    return found


def beside(server: Served, texts: int, characters: int) -> list[float]:
    """The same while so many texts are written; for a second while there is none."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as caller:
        measured = caller.submit(images, server, ended)
        try:
            if texts:
                streamed(server, texts, characters)
            else:
                time.sleep(1)
        finally:
            ended.set()
        return measured.result()


def main() -> None:
    """Measure everything in turns."""
    parser = options(__doc__, turns=5)
    parser.add_argument("--characters", type=int, default=1000, help="of each text")
    parser.add_argument("--texts", default="1,8", help="texts at a time")
    given = parser.parse_args()
    found, counts = writer(), [int(count) for count in given.texts.split(",")]
    with tempfile.TemporaryDirectory() as folder, modelmint(
        [found, model("cnn")], Path(folder)
    ) as server:  # fmt: skip
        rates = in_turns(
            {"bare": lambda: alone(found, given.characters)}
            | {
                f"{count} streamed": lambda count=count: streamed(server, count, given.characters)
                for count in counts
            },
            given.turns,
        )
        times = in_turns(
            {
                "alone": lambda: beside(server, 0, 0),
                "beside": lambda: beside(server, counts[-1], given.characters),
            },
            given.turns,
        )
    rows: list[dict[str, Any]] = [
        {"what": name, "tokens/s": round(median(rate)), "over bare": _over(rate, rates["bare"])}
        for name, rate in rates.items()
    ]
    for name, turns in times.items():
        p50, p99 = (median(float(np.quantile(one, q)) for one in turns) for q in (0.5, 0.99))
        what = "an image" if name == "alone" else f"an image beside {counts[-1]} texts"
        rows.append({"what": what, "p50 ms": round(p50, 2), "p99 ms": round(p99, 2)})
    publish("writing", {"rows": rows}, rows, ["onnxruntime", "starlette", "uvicorn"], given.json)


def _over(rate: Sequence[float], bare: Sequence[float]) -> float:
    return round(ratio(rate, bare), 2)


if __name__ == "__main__":
    main()
