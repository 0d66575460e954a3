"""A network served by Triton, from PyTriton's wheel, whose Python backend calls ONNX Runtime.

Run by `benchmarks.serving_peers` in a venv that has it.
"""

import os
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MOST = int(os.environ["MOST_ROWS"])


def network() -> Any:
    """The network as every contestant loads it: one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, ["CPUExecutionProvider"])


def instance() -> Any:
    """A function that computes a batch with a network of its own."""
    session = network()
    name = session.get_inputs()[0].name

    @batch  # type: ignore[untyped-decorator]
    def compute(**tensors: Any) -> Any:
        return {"probabilities": session.run(None, {name: tensors[name]})[0]}

    return compute


if __name__ == "__main__":
    given = network().get_inputs()[0]
    dtype = np.uint8 if "uint8" in given.type else np.float32
    port = int(os.environ["PORT"])
    address = {"http_address": "127.0.0.1", "http_port": port, "allow_grpc": False}
    with Triton(config=TritonConfig(**address, allow_metrics=False)) as triton:
        triton.bind(
            model_name="network",
            infer_func=[instance(), instance()],
            inputs=[Tensor(name=given.name, dtype=dtype, shape=tuple(given.shape[1:]))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=max(1, MOST), batcher=DynamicBatcher()),
        )
        triton.serve()
