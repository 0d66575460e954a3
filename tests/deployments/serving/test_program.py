"""A version whose network is a program of torch, which ONNX Runtime does not run."""

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from torch import Tensor, nn

from deployments.serving.folder import TRITON_FILE, hold, line_folder
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.session import open_version
from models.program import Named, exported
from models.signature import MODEL_FILE, PROGRAM_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from tests.deployments.serving.versions import Version


class AirTime(nn.Module):
    """prediction = distance + 2 hour, of which the eigenvalues of a matrix are the parts."""

    def forward(self, numbers: Tensor) -> Tensor:
        found: Tensor = torch.linalg.eigvalsh(torch.diag_embed(numbers)).sum(dim=1)
        return found + numbers[:, 1]


@pytest.fixture
def version(table: Callable[..., Version], sealed: Any) -> Version:
    kept = {name: table().files[name] for name in (SIGNATURE_FILE, SAMPLE_FILE)}
    signature = Signature.model_validate_json(kept[SIGNATURE_FILE])
    named = Named(inputs=signature.features.inputs, outputs=signature.outputs)
    batch = torch.export.Dim("batch", min=1)
    content = exported(AirTime().eval(), (torch.ones(2, 2),), ({0: batch},), named)
    found: Version = sealed("air-time", {**kept, PROGRAM_FILE: content})
    return found


def test_it_is_served_like_any_other(version: Version, tmp_path: Path, here: Any) -> None:
    version.place(tmp_path, "1")
    hold(tmp_path).close()
    with closing(Repository(tmp_path, here)) as repository:
        repository.restore()
        repository.load("air-time", "1", version.digest)
        served = repository.get("air-time", "1")
    found = served.run({"numbers": np.array([[100, 12], [7, 0.5]], np.float32)})
    np.testing.assert_allclose(found["prediction"], [124, 8], rtol=1e-5)
    # Triton would read a configuration that names a network which is not there.
    assert not (line_folder(tmp_path, "air-time") / TRITON_FILE).exists()


def test_its_platform_is_told(version: Version, tmp_path: Path, begun: Any) -> None:
    root = tmp_path / "repository"
    version.place(root, "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with begun(root, "--grpc-port", f"{port}") as server:
        assert server.load(version, "1").status == 200
        assert server.promote("air-time", "1").status == 200
        assert server.ask("GET", "/v2/models/air-time").json["platform"] == "pytorch_pt2"
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            told = client.get_model_metadata("air-time", headers=server.bearer)
        assert told.platform == "pytorch_pt2"


def test_values_it_cannot_compute_are_the_callers_error(version: Version) -> None:
    served = open_version("air-time", "1", version.digest, version.files)
    with pytest.raises(ProtocolError, match="cannot compute these values") as raised:
        served.run({"numbers": np.zeros((1, 3), np.float32)})
    assert raised.value.status == 400


def test_a_damaged_program_is_not_served(version: Version, sealed: Any) -> None:
    files = {name: version.files[name] for name in (SIGNATURE_FILE, SAMPLE_FILE)}
    bad = sealed("air-time", {**files, PROGRAM_FILE: version.files[PROGRAM_FILE][:-100]})
    with pytest.raises(ProtocolError, match="not a program torch can run") as raised:
        open_version("air-time", "1", bad.digest, bad.files)
    assert (raised.value.status, raised.value.code) == (422, "unfit_version")


def test_where_there_is_no_torch_the_refusal_says_so(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MODEL_FILE not in version.files
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ProtocolError, match="torch, which is not installed") as raised:
        open_version("air-time", "1", version.digest, version.files)
    assert (raised.value.status, raised.value.code) == (422, "unfit_version")
