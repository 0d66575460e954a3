"""A network served by LitServe: run by `benchmarks.serving_peers` in a venv that has it."""

import os
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Network(litserve.LitAPI):  # type: ignore[misc]
    """One row of JSON in, its probabilities out."""

    def setup(self, device: str) -> None:
        """Load the network as every contestant does: one thread."""
        del device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers)
        given = self.session.get_inputs()[0]
        self.name, self.shape = given.name, given.shape[1:]
        self.dtype = np.uint8 if "uint8" in given.type else np.float32

    # LitServe has FastAPI read an annotated request from the query.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """A row [...]."""
        return np.array(request["data"], self.dtype).reshape(self.shape)

    def predict(self, rows: Any) -> Any:
        """Probabilities of one row, or of a batch of them."""
        one = rows.ndim == len(self.shape)
        found = self.session.run(None, {self.name: rows[None] if one else np.stack(rows)})[0]
        return found[0] if one else found

    def encode_response(self, output: Any) -> Any:
        """Probabilities as a list."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    most = int(os.environ["MOST_ROWS"])
    api = Network(max_batch_size=most, batch_timeout=0.005 if most > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        generate_client_file=False,
    )
