r"""The same folder in Triton: a line is a model, a version number is a Triton version.

    tritonserver --model-repository <repository>/models --disable-auto-complete-config

Of a line that has no configuration, since ONNX Runtime lacks its network, it would guess one.
"""

from deployments.serving.session import Served
from models.program import Program
from models.tensors import TensorSpec


def triton_config(served: Served) -> str | None:
    """Triton's configuration of the line: it serves the default version, and no other.

    Triton answers with the highest number it serves when none is named, so more than one would let
    a version answer that nobody promoted. None for a program of torch, which no backend of it runs.
    """
    if isinstance(served.session, Program):
        return None

    def block(kind: str, spec: TensorSpec) -> str:
        datatype = {"BYTES": "STRING"}.get(spec.datatype, spec.datatype)
        dims = ", ".join(str(length) for length in spec.shape)
        return f'{kind} {{ name: "{spec.name}" data_type: TYPE_{datatype} dims: [ {dims} ] }}\n'

    return (
        f'name: "{served.line}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
        f"version_policy {{ specific {{ versions: [ {served.number} ] }} }}\n"
        + "".join(block("input", spec) for spec in served.inputs)
        + "".join(block("output", spec) for spec in served.outputs)
        + "instance_group { kind: KIND_CPU count: 1 }\n"
    )
