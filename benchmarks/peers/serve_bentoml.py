"""A network served by BentoML: run by `benchmarks.serving_peers` in a venv that has it."""

import os

import bentoml
import numpy as np
import onnxruntime

MOST = int(os.environ["MOST_ROWS"])


@bentoml.service(workers=2, metrics={"enabled": True}, traffic={"timeout": 60})
class Network:
    """Rows of JSON in, their probabilities out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers)
        given = self.session.get_inputs()[0]
        self.name = given.name
        self.dtype = np.uint8 if "uint8" in given.type else np.float32

    @bentoml.api(batchable=MOST > 1, max_batch_size=max(2, MOST))
    def predict(self, data: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] of rows [n, ...]."""
        found: np.ndarray = self.session.run(None, {self.name: data.astype(self.dtype)})[0]
        return found
