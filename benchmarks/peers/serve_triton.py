"""A network served by Triton: run by `benchmarks.serving_peers` in a venv that has PyTriton.

PyTriton's wheel brings Triton's server and of its backends the one for Python, so ONNX Runtime runs
inside that: two processes, one a core, each with this file as its model. Started, it writes a model
repository and becomes `tritonserver`. It joins what waits while both compute, also for a network
that gains nothing by it: a batch goes from process to process at once.

The backend embeds `libpython` and heeds no variable of Python's: the library of the Python that
made the venv must be found before the system's, whose patch release may be another, and the venv by
the path of programs. It reads arrays of numpy 1 only; of those of numpy 2 it sends no bytes.
"""

import ctypes.util
import os
import socket
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def session() -> onnxruntime.InferenceSession:
    """The network as every contestant loads it: one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, ["CPUExecutionProvider"])


class TritonPythonModel:
    """What the Python backend looks for by this name."""

    def initialize(self, args: Any) -> None:
        """Load the network."""
        # It is found in the backend's process only.
        import triton_python_backend_utils as triton

        del args
        self.triton, self.session = triton, session()
        self.name = self.session.get_inputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """Probabilities of each of several requests."""
        triton = self.triton
        rows = [triton.get_input_tensor_by_name(one, self.name).as_numpy() for one in requests]
        found = self.session.run(None, {self.name: np.concatenate(rows)})[0]
        parts = np.split(found, np.cumsum([len(one) for one in rows])[:-1])
        return [triton.InferenceResponse([triton.Tensor("probabilities", one)]) for one in parts]


def configuration() -> str:
    """The model as Triton is told of it."""

    def block(kind: str, tensor: Any) -> str:
        datatype = "UINT8" if "uint8" in tensor.type else "FP32"
        dims = tensor.shape[1:]
        return f'{kind} {{ name: "{tensor.name}" data_type: TYPE_{datatype} dims: {dims} }}\n'

    network = session()
    return (
        'backend: "python"\ninstance_group { kind: KIND_CPU count: 2 }\n'
        + "max_batch_size: 32\ndynamic_batching { }\n"
        + block("input", network.get_inputs()[0])
        + block("output", network.get_outputs()[0])
    )


def library() -> Path:
    """The folder of this Python's shared library."""
    folder = Path(sysconfig.get_config_var("LIBDIR"))
    name = f"python{sysconfig.get_python_version()}"
    if not (folder / f"lib{name}.so.1.0").exists() and ctypes.util.find_library(name) is None:
        sys.exit(f"Triton needs lib{name}: a Python built with --enable-shared")
    return folder


def backends(server: Path, folder: Path) -> None:
    """The Python backend with the stub of this version of Python."""
    stub = server / "python_backend_stubs" / sysconfig.get_python_version()
    if not stub.exists():
        sys.exit(f"Triton has no backend for Python {sysconfig.get_python_version()}")
    folder.mkdir(parents=True)
    for file in [*(server / "backends" / "python").iterdir(), *stub.iterdir()]:
        (folder / file.name).symlink_to(file)


if __name__ == "__main__":
    file = Path(os.environ["MODEL"])
    folder = file.parent / "triton"
    version = folder / "repository" / file.stem / "1"
    version.mkdir(parents=True)
    (version / "model.py").symlink_to(Path(__file__).resolve())
    (version.parent / "config.pbtxt").write_text(configuration())
    # To import it takes seconds, and its server is another program.
    package = Path(sysconfig.get_path("purelib"), "pytriton")
    server = package / "tritonserver"
    backends(server, folder / "backends" / "python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    ours = {
        "LD_LIBRARY_PATH": f"{library()}{os.pathsep}{package.with_name('nvidia_pytriton.libs')}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    os.execve(
        server / "bin" / "tritonserver",
        ["tritonserver", f"--model-repository={folder / 'repository'}",
         f"--backend-directory={folder / 'backends'}", "--allow-grpc=false",
         "--http-address=127.0.0.1", f"--http-port={os.environ['PORT']}",
         "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--exit-timeout-secs=8"],
        os.environ | ours,
    )  # fmt: skip
