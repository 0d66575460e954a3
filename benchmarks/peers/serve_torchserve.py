"""A network served by TorchServe: run by `benchmarks.serving_peers` in a venv that has it.

Started, it archives the network with this file as the handler, writes a configuration beside it,
and becomes `torchserve`, which starts Java, which starts two workers. All is as it comes, but for
these: callers need no token; a thread of its own writes the logs, several lines a request
(`async_logging`); 1,024 requests may wait, not 100, since it refuses the rest. Batches are made
also for a network that gains nothing by them: a batch goes from Java to Python and back at once.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Network:
    """One row of JSON a request in, its probabilities out."""

    def initialize(self, context: Any) -> None:
        """Load the network as every contestant does: one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(
            context.system_properties["model_dir"], context.manifest["model"]["serializedFile"]
        )
        self.session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        given = self.session.get_inputs()[0]
        self.name = given.name
        self.dtype = np.uint8 if "uint8" in given.type else np.float32

    def handle(self, requests: list[Any], context: Any) -> list[Any]:
        """Probabilities of each of several requests."""
        del context
        rows = np.array([request["body"]["data"] for request in requests], self.dtype)
        found = self.session.run(None, {self.name: rows})[0]
        return [{"probabilities": row} for row in found.tolist()]


def configuration(folder: Path, archive: str) -> Path:
    """The file that names the archive, how it is run, and where it is served."""
    here = f"http://127.0.0.1:{os.environ['PORT']}"
    version = {
        "defaultVersion": True,
        "marName": archive,
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 32,
        "maxBatchDelay": 5 if int(os.environ["MOST_ROWS"]) > 1 else 1,
        "responseTimeout": 60,
    }
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    metrics, *grpc = (one.getsockname()[1] for one in free)
    for one in free:
        one.close()
    settings = {
        "inference_address": here,
        "management_address": here,
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": grpc[0],
        "grpc_management_port": grpc[1],
        "disable_token_authorization": "true",
        "async_logging": "true",
        "job_queue_size": 1024,
        "model_store": folder,
        "load_models": archive,
        "models": json.dumps({"network": {"1.0": version}}),
    }
    file = folder / "config.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return file


if __name__ == "__main__":
    home = os.environ.get("JAVA_HOME")
    if shutil.which(f"{home}/bin/java" if home else "java") is None:
        sys.exit("TorchServe needs Java: apt-get install openjdk-17-jre-headless")
    network, programs = Path(os.environ["MODEL"]), Path(sys.executable).parent
    folder = network.parent / "torchserve"
    folder.mkdir()
    subprocess.run(
        [programs / "torch-model-archiver", "--model-name", "network", "--version", "1.0",
         "--serialized-file", network, "--handler", __file__, "--export-path", folder],
        check=True,
    )  # fmt: skip
    # Logs go where it starts; the file that says that it runs, and sockets, to temporary ones.
    os.chdir(folder)
    os.execve(
        programs / "torchserve",
        ["torchserve", "--start", "--foreground", "--no-config-snapshots",
         "--ts-config", str(configuration(folder, "network.mar"))],
        os.environ | {"TMPDIR": str(folder), "TEMP": str(folder)},
    )  # fmt: skip
