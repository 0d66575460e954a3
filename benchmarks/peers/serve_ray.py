"""A network served by Ray Serve: run by `benchmarks.serving_peers` in a venv that has it."""

import os
import signal
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request

MOST = int(os.environ["MOST_ROWS"])


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
class Network:
    """One row of JSON in, its probabilities out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers)
        given = self.session.get_inputs()[0]
        self.name = given.name
        self.dtype = np.uint8 if "uint8" in given.type else np.float32

    @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=0.005 if MOST > 1 else 0.0)
    async def compute(self, rows: list[Any]) -> list[Any]:
        """Probabilities of several rows."""
        found = self.session.run(None, {self.name: np.stack(rows)})[0]
        return list(found.tolist())

    async def __call__(self, request: Request) -> Any:
        """Probabilities of the row of a request."""
        given = await request.json()
        return {"probabilities": await self.compute(np.array(given["data"], self.dtype))}


if __name__ == "__main__":
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Network.bind(), route_prefix="/predict")
    signal.pause()
