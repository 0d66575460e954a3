"""A network served by KServe's SDK: run by `benchmarks.serving_peers` in a venv that has it."""

import os
from typing import Any

import kserve
import numpy as np
import onnxruntime


class Network(kserve.Model):  # type: ignore[misc]
    """Open Inference Protocol in and out."""

    def load(self) -> bool:
        """Load the network as every contestant does: one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers)
        self.ready = True
        return True

    async def predict(self, payload: Any, *_: Any, **__: Any) -> Any:
        """Probabilities of the rows of a request."""
        given = payload.inputs[0]
        found = self.session.run(None, {given.name: given.as_numpy()})[0]
        output = kserve.InferOutput("probabilities", list(found.shape), "FP32")
        output.set_data_from_numpy(np.asarray(found), binary_data=False)
        return kserve.InferResponse("", self.name, [output])


if __name__ == "__main__":
    network = Network("network")
    network.load()
    kserve.ModelServer(http_port=int(os.environ["PORT"]), enable_grpc=False, workers=1).start(
        [network]
    )
