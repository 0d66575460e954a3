"""Networks that ONNX Runtime does not run, as programs of torch (`torch.export`, the pt2 archive).

A program answers to what a session of ONNX Runtime is asked. Of the archive's formats only those
are read that run nothing by being read: a graph in JSON and tensors as plain bytes, no pickle, no
compiled library.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.open import Frozen
from models.tensors import TensorSpec

TENSORS = "tensors.json"
"""The extra file that names the tensors; a program numbers them."""
_MAGIC = b"PK\x03\x04"
_FILES = re.compile(
    r"\.data/(version|serialization_id)|byteorder|archive_(format|version)"
    r"|models/model\.json|data/sample_inputs/model\.pt|data/(weights|constants)/model_\w+_config\.json"
    rf"|data/(weights|constants)/(weight|tensor)_\d+|extra/{re.escape(TENSORS)}"
)
_PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What a node tells of the code and the folders it comes from."""
_ONNX_TYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float", "FP64": "double"}


class ProgramError(ValueError):
    """The content is no program, or one that is not read here."""


class Named(Frozen):
    """The tensors of a program, in its order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Described(NamedTuple):
    """A tensor in the words of ONNX Runtime's sessions."""

    name: str
    type: str
    shape: list[Any]


def is_program(content: bytes) -> bool:
    """Whether it is an archive; ONNX begins with the number of its version."""
    return content.startswith(_MAGIC)


def exported(network: Any, rows: Sequence[Any], dynamic_shapes: Any, tensors: Named) -> bytes:
    """The network, an `nn.Module` in evaluation, as a program; bytes that repeat exactly.

    `rows` are its example inputs. Raises ProgramError for one that torch cannot export.
    """
    import torch

    try:
        program = torch.export.export(network, tuple(rows), dynamic_shapes=dynamic_shapes)
    except Exception as error:  # torch's errors share no base class
        raise ProgramError(f"torch.export does not take the network: {error}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in _PLACES:
                    node.meta.pop(name, None)
    # They would be pickled.
    program.example_inputs = None
    packed = io.BytesIO()
    torch.export.save(program, packed, extra_files={TENSORS: tensors.model_dump_json()})
    content = packed.getvalue()
    _check(content)
    return content


class Program:
    """A program of torch, ready to be asked; thread-safe.

    `threads` are those of torch in the whole process, where it is to change them. Raises
    ProgramError for content that is none, ImportError where there is no torch.
    """

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        _check(content)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)

        extra = {TENSORS: ""}
        try:
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
            tensors = Named.model_validate_json(extra[TENSORS])
        except Exception as error:  # torch's errors share no base class
            raise ProgramError(f"torch cannot read the program: {error}") from error
        self._module, self._tensors, self._torch = program.module(), tensors, torch

    def run(
        self, names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """The outputs of those names, by default all, in their order; raises ProgramError."""
        torch = self._torch
        try:
            # A request's array may be read-only, which torch warns of.
            given = [torch.from_numpy(np.array(feeds[s.name])) for s in self._tensors.inputs]
            with torch.inference_mode():
                found = self._module(*given)
        except (KeyError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ProgramError(f"the program does not take these inputs: {error}") from error
        several = found if isinstance(found, (tuple, list)) else (found,)
        by_name = {
            spec.name: tensor.numpy()
            for spec, tensor in zip(self._tensors.outputs, several, strict=True)
        }
        return [by_name[name] for name in names or by_name]

    def get_inputs(self) -> list[Described]:
        """The tensors it takes."""
        return [_described(spec) for spec in self._tensors.inputs]

    def get_outputs(self) -> list[Described]:
        """The tensors it gives."""
        return [_described(spec) for spec in self._tensors.outputs]


class _Predicting:
    """What MLflow asks: inputs by name, outputs by name."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def predict(self, given: Any, params: Any = None) -> dict[str, NDArray[Any]]:
        """The outputs for a mapping, or a data frame, of inputs."""
        del params
        names = [tensor.name for tensor in self._program.get_outputs()]
        feeds = {t.name: np.asarray(given[t.name]) for t in self._program.get_inputs()}
        return dict(zip(names, self._program.run(names, feeds), strict=True))


def _load_pyfunc(path: str) -> _Predicting:
    """What `mlflow.pyfunc.load_model` calls."""
    return _Predicting(Program(Path(path).read_bytes()))


def _check(content: bytes) -> None:
    """Raise ProgramError unless reading it runs nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                inner = name.partition("/")[2]
                if not _FILES.fullmatch(inner):
                    raise ProgramError(f"the program holds {name[:100]!r}, which is not read")
                if inner.endswith(".pt") and archive.getinfo(name).file_size:
                    raise ProgramError(f"{name} is a pickle, which is not read")
                if inner.endswith("_config.json"):
                    config = json.loads(archive.read(name))["config"]
                    if any(entry["use_pickle"] for entry in config.values()):
                        raise ProgramError(f"{name} names a pickle, which is not read")
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"it is no archive of a program: {error}") from None


def _described(spec: TensorSpec) -> Described:
    kind = _ONNX_TYPES.get(spec.datatype, spec.datatype.lower())
    shape = [length if length >= 0 else f"{spec.name}_{i}" for i, length in enumerate(spec.shape)]
    return Described(spec.name, f"tensor({kind})", shape)
