"""Other servers of the same network, each in a venv of its own, for `benchmarks.serving`.

A venv is made in the folder given by `--venvs` when it is not there yet. Peers get two processes,
one a core (KServe's SDK one, since its workers share no model), JSON as their documentation sends
it, and batching where the network gains by it and they have it; they have no keys, quotas, audit or
version on their answers. TorchServe needs Java. Triton also gets raw tensors; it is PyTriton's,
whose wheel brings the server with its Python backend alone, so it runs the network in that: no
package of PyPI or Debian brings its ONNX backend, nor OpenVINO's model server.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson

from benchmarks.served import Model, Served, free_port, wait

SCRIPTS = Path(__file__).with_name("peers")
PACKAGES = {
    "litserve": ("litserve", "onnxruntime", "numpy"),
    "bentoml": ("bentoml", "onnxruntime", "numpy"),
    "mlflow": (),
    "ray": ("ray[serve]", "onnxruntime", "numpy"),
    "kserve": ("kserve", "onnxruntime", "numpy"),
    "torchserve": (
        "torchserve",
        "torch-model-archiver",
        "torch==2.13.0",
        "pyyaml",
        "onnxruntime",
        "numpy",
    ),
    "triton": ("nvidia-pytriton", "onnxruntime", "numpy<2"),
    "bare": (),
}
"""What is installed for each; MLflow's own server is in the environment of the project, and so is
uvicorn, which `bare` runs without a network: the limit of one process of it, not a peer."""
READY = {
    "litserve": "/health",
    "ray": "/-/healthz",
    "kserve": "/v2/models/network/ready",
    "torchserve": "/ping",
    "triton": "/v2/health/ready",
}
"""The path that answers once a peer serves whose script starts it."""
BINARY = ("triton",)
"""Peers that are asked as our server is, in both forms."""


class Peer(NamedTuple):
    """How a peer is started, and the path that answers once it serves."""

    command: list[str]
    ready: str


def venv(name: str, folder: Path) -> Path:
    """The Python of the peer's venv."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
    return python


@contextmanager
def serving(name: str, found: Model, folder: Path, venvs: Path, most: int) -> Iterator[Served]:
    """The peer with the network; batches of up to `most` rows. Ended afterwards."""
    file = folder / f"{found.name}.onnx"
    file.write_bytes(found.onnx)
    port = free_port()
    peer = _peer(name, found, folder, venvs, port)
    # MLflow starts `uvicorn` by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"MODEL": str(file), "PORT": str(port), "MOST_ROWS": str(most), "PATH": path}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            peer.command, cwd=SCRIPTS, env=os.environ | ours, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait(url + peer.ready, process)
        path, body = request(name, found)
        headers = {"content-type": "application/json"}
        # A wrong answer is quickly given.
        httpx.post(url + path, content=body, headers=headers, timeout=60).raise_for_status()
        yield Served(url, headers, process)
    except (RuntimeError, httpx.HTTPError) as error:
        said = (folder / f"{name}.log").read_text()[-3000:]
        raise RuntimeError(f"{name} does not serve: {error}\n{said}") from None
    finally:
        # Workers of some outlive their parent: the whole session ends. Triton takes its time to.
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def request(name: str, found: Model) -> tuple[str, bytes]:
    """Path and body of one row."""
    rows = found.rows[:1].tolist()
    if name in ("litserve", "ray"):
        return "/predict", orjson.dumps({"data": rows[0]})
    if name == "torchserve":
        return "/predictions/network", orjson.dumps({"data": rows[0]})
    if name in ("kserve", "bare"):
        return "/v2/models/network/infer", found.json()
    if name == "triton":
        return f"/v2/models/{found.name}/infer", found.json()
    if name == "bentoml":
        return "/predict", orjson.dumps({"data": rows})
    return "/invocations", orjson.dumps({"inputs": {found.input: rows}})


def _peer(name: str, found: Model, folder: Path, venvs: Path, port: int) -> Peer:
    if name == "bentoml":
        bentoml = venv(name, venvs).with_name("bentoml")
        command = [str(bentoml), "serve", "serve_bentoml:Network", "--port", str(port)]
        return Peer([*command, "--host", "127.0.0.1"], "/readyz")
    if name == "bare":
        return Peer([sys.executable, "serve_bare.py"], "/")
    if name in READY:
        return Peer([str(venv(name, venvs)), f"serve_{name}.py"], READY[name])
    _save_for_mlflow(found, folder / "mlflow")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    options = ["-m", str(folder / "mlflow"), "-p", str(port), "-w", "2"]
    return Peer([*command, *options], "/ping")


def _save_for_mlflow(found: Model, folder: Path) -> None:
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    spec = TensorSpec(found.rows.dtype, (-1, *found.rows.shape[1:]), found.input)
    mlflow.onnx.save_model(
        onnx.load_from_string(found.onnx),
        str(folder),
        signature=ModelSignature(inputs=Schema([spec])),
        pip_requirements=["onnxruntime"],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
