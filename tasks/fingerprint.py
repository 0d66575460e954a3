"""The numeric fingerprint: digests of a few results, equal where a stage gives the same bits.

Processors differ in instructions, and libraries choose kernels by them, so equal code and equal
libraries may still round differently. A version records the fingerprint of the place that made it,
and a replay compares it first: it can then say "another numeric platform" and not "differs".
"""

from typing import Any

import numpy as np

from models.digests import Digest, bytes_digest
from models.signature import Signature
from models.spec import Family
from tasks.isolated import Emit
from tasks.jobs import FingerprintJob, Fingerprints

ROWS, STEPS, WIDTH = 16, 3, 128


def measure(job: FingerprintJob, emit: Emit) -> Fingerprints:
    """In an isolated process: the fingerprint of this place for a family and a signature."""
    from tasks.determinism import deterministic

    del emit
    deterministic(job.threads)
    return Fingerprints(digests=fingerprint(job.model, job.signature, job.device))


def fingerprint(model: Family, signature: Signature, device: str = "cpu") -> dict[str, Digest]:
    """By library: digests of a tiny training, of NumPy's functions and of an ONNX graph."""
    return {
        "numpy": _numpy(),
        "onnxruntime": _onnxruntime(),
        "torch": _torch(model, signature, device),
    }


def _numpy() -> Digest:
    """Elementary functions, sums and matrix products of 4,096 fixed numbers."""
    x = np.linspace(0.001, 9.0, 4096)
    single = x.astype(np.float32)
    functions = (np.log, np.exp, np.sin, np.tanh, np.sqrt, np.cumsum)
    results: list[Any] = [f(values) for f in functions for values in (x, single)]
    for values in (x, single):
        square = values.reshape(64, 64)
        results += [square @ square.T, values.sum(), values.mean(), values.std()]
    return bytes_digest(b"".join(np.ascontiguousarray(r).tobytes() for r in results))


def _onnxruntime() -> Digest:
    """A convolution, an exponential and a matrix product by ONNX Runtime on one thread."""
    from onnx import TensorProto, helper, numpy_helper

    from tasks.inference import session

    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(random.standard_normal(shape, np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["maps"]),
            helper.make_node("Relu", ["maps"], ["positive"]),
            helper.make_node("Flatten", ["positive"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["y"]),
        ],
        "fingerprint",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32, 12, 12])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("scores", "y")],
        [constant("kernel", 64, 32, 3, 3), constant("weights", 6400, 10)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = random.standard_normal((4, 32, 12, 12), np.float32)
    found = session(model.SerializeToString()).run(None, {"x": x})
    return bytes_digest(b"".join(part.tobytes() for part in found))


def _torch(model: Family, signature: Signature, device: str) -> Digest:
    """The line's own network, three steps of AdamW on made-up rows; and a large layer, since a
    product's size decides who computes it."""
    import torch

    torch.manual_seed(0)
    network = model.build(signature.features, signature.objective.width).to(device).train()
    rows = []
    for spec in signature.features.inputs:
        if spec == signature.features.state:
            continue
        shape = (ROWS, *(max(length, 1) for length in spec.shape[1:]))
        if spec.datatype.startswith("FP"):
            rows.append(torch.randn(shape))
        else:
            # Index 0 is valid for any vocabulary, and any pixel.
            rows.append(torch.zeros(shape, dtype=torch.from_numpy(np.zeros(1, spec.dtype)).dtype))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = network(*(row.to(device) for row in rows))
        (found.square().mean() + found.logsumexp(1).mean()).backward()
        optimizer.step()
    layer = torch.nn.Linear(WIDTH, WIDTH).to(device)
    (layer(torch.randn(WIDTH, WIDTH).to(device)).tanh() @ layer.weight).square().mean().backward()
    values = [*network.parameters(), *(p.grad for p in layer.parameters() if p.grad is not None)]
    parts = [value.detach().cpu().contiguous().numpy().tobytes() for value in values]
    return bytes_digest(b"".join(parts))
