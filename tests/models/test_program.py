import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import program
from models.program import Named, Program, ProgramError, exported, is_program
from models.tensors import TensorSpec

NAMED = Named(
    inputs=(
        TensorSpec(name="matrix", datatype="FP32", shape=(-1, 9)),
        TensorSpec(name="shift", datatype="FP32", shape=(-1, 1)),
    ),
    outputs=(
        TensorSpec(name="levels", datatype="FP32", shape=(-1, 3)),
        TensorSpec(name="trace", datatype="FP32", shape=(-1,)),
    ),
)


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(9, 9)

    def forward(self, matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        square = self.inner(matrix).reshape(-1, 3, 3)
        levels: Tensor = torch.linalg.eigvalsh(square + square.transpose(1, 2)) + shift
        return levels, levels.sum(dim=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return Levels().eval()


def content() -> bytes:
    batch = torch.export.Dim("batch", min=1)
    rows = torch.ones(2, 9), torch.ones(2, 1)
    return exported(network(), rows, ({0: batch}, {0: batch}), NAMED)


def feeds(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {
        "matrix": rng.normal(size=(count, 9)).astype(np.float32),
        "shift": rng.normal(size=(count, 1)).astype(np.float32),
    }


def changed(files: Mapping[str, bytes]) -> bytes:
    """The program with other files, or with more."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content())) as before, zipfile.ZipFile(packed, "w") as after:
        for name in before.namelist():
            if name not in files:
                after.writestr(name, before.read(name))
        for name, given in files.items():
            after.writestr(name, given)
    return packed.getvalue()


@pytest.mark.parametrize("count", [1, 2, 33])
def test_it_answers_as_the_network_does(count: int) -> None:
    opened, given = Program(content()), feeds(count)
    with torch.inference_mode():
        levels, trace = network()(*(torch.from_numpy(tensor) for tensor in given.values()))
    np.testing.assert_array_equal(opened.run(None, given)[0], levels.numpy())
    [found] = opened.run(["trace"], given)
    np.testing.assert_array_equal(found, trace.numpy())


def test_it_describes_its_tensors_as_a_session_does() -> None:
    opened = Program(content())
    assert [(t.name, t.type, t.shape[1:]) for t in opened.get_inputs()] == [
        ("matrix", "tensor(float)", [9]),
        ("shift", "tensor(float)", [1]),
    ]
    assert [t.name for t in opened.get_outputs()] == ["levels", "trace"]


def test_its_bytes_repeat_and_name_no_place() -> None:
    found = content()
    assert is_program(found)
    assert found == content()
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        whole = b"".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in whole
    assert b"Levels" not in whole


def test_inputs_it_does_not_take_are_refused() -> None:
    opened = Program(content())
    with pytest.raises(ProgramError, match="does not take these inputs"):
        opened.run(None, {**feeds(2), "matrix": np.ones((2, 8), np.float32)})
    with pytest.raises(ProgramError, match="does not take these inputs"):
        opened.run(None, {"matrix": feeds(2)["matrix"]})


def test_a_network_torch_cannot_export_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(ProgramError, match="does not take the network"):
        exported(Branching(), (torch.ones(2, 1),), None, NAMED)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"archive/data/sample_inputs/model.pt": b"\x80\x02."}, "is a pickle"),
        ({"archive/data/aotinductor/model/model.so": b"\x7fELF"}, "not read"),
        ({"archive/data/constants/opaque_0": b"\x80\x02."}, "not read"),
        ({"../outside": b""}, "not read"),
        (
            {
                "archive/data/weights/model_weights_config.json": json.dumps(
                    {"config": {"inner.weight": {"path_name": "weight_0", "use_pickle": True}}}
                ).encode()
            },
            "names a pickle",
        ),
        ({"archive/data/weights/model_weights_config.json": b"[]"}, "no archive of a program"),
        ({"archive/models/model.json": b"{}"}, "torch cannot read"),
    ],
)
def test_what_would_run_something_by_being_read_is_refused(
    files: dict[str, bytes], said: str
) -> None:
    with pytest.raises(ProgramError, match=said):
        Program(changed(files))


def test_what_is_no_archive_is_refused() -> None:
    for given in (b"", b"PK\x03\x04", content()[:-200]):
        with pytest.raises(ProgramError, match="no archive of a program"):
            Program(given)


def test_mlflow_reads_it(tmp_path: Path) -> None:
    given = feeds(3)
    file = tmp_path / "model.pt2"
    file.write_bytes(content())
    found = program._load_pyfunc(str(file)).predict(given)
    np.testing.assert_array_equal(found["levels"], Program(content()).run(None, given)[0])
