"""The served folder in other programs: Triton's configuration of it, and its networks in OpenVINO.

Versions of every family, in the forms they were compressed to.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import openvino
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import triton_to_np_dtype

from deployments.serving.folder import TRITON_FILE, hold, line_folder, version_folder
from deployments.serving.repository import Repository
from deployments.serving.session import Served
from models import samples
from models.signature import MODEL_FILE, SAMPLE_FILE
from models.trust import TRUSTED, PublicKey, Trust

GOLDEN = Path(__file__).parents[2] / "golden" / "current"
LINES = sorted(folder.name for folder in GOLDEN.iterdir())
NUMBER = "3"
CLOSE = 0.01
"""Whole numbers of int8 are rounded another way on another processor."""


class Folder:
    """A repository folder that a server left behind, and what it served."""

    def __init__(self, root: Path, keys: Path) -> None:
        self.root = root
        self.served: dict[str, Served] = {}
        (keys / TRUSTED).mkdir(parents=True)
        for line in LINES:
            content = (GOLDEN / line / "key.json").read_bytes()
            keyid = PublicKey.model_validate_json(content).keyid
            (keys / TRUSTED / f"{keyid}.json").write_bytes(content)
            shutil.copytree(GOLDEN / line, version_folder(root, line, NUMBER))
        hold(root).close()
        with closing(Repository(root, Trust(keys))) as repository:
            for line in LINES:
                recorded = json.loads((GOLDEN / line / "version.json").read_bytes())
                self.served[line] = repository.load(line, NUMBER, recorded["digest"])
                repository.set_default(line, NUMBER)

    def network(self, line: str) -> openvino.Model:
        """The network that a program finds by the layout alone."""
        config = self.config(line)
        (number,) = config.version_policy.specific.versions
        return openvino.Core().read_model(version_folder(self.root, line, str(number)) / MODEL_FILE)

    def config(self, line: str) -> ModelConfig:
        """Triton's configuration, by Triton's own definition; unknown fields are refused."""
        return text_format.Parse(
            (line_folder(self.root, line) / TRITON_FILE).read_text(), ModelConfig()
        )


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("left")
    return Folder(folder / "repository", folder / "keys")


@pytest.mark.parametrize("line", LINES)
def test_triton_is_told_what_the_network_is(left: Folder, line: str) -> None:
    config, network = left.config(line), left.network(line)
    assert (config.name, config.platform, config.max_batch_size) == (line, "onnxruntime_onnx", 0)
    for tensors, ports in ((config.input, network.inputs), (config.output, network.outputs)):
        told = {one.name: (kind(one.data_type), list(one.dims)) for one in tensors}
        # A port may have several names.
        true = {
            name: (port.element_type.to_dtype(), lengths(port.partial_shape))
            for port in ports
            for name in port.names & told.keys()
        }
        assert told == true
        assert len(told) == len(ports)


def kind(datatype: int) -> type[np.generic]:
    return triton_to_np_dtype(DataType.Name(datatype).removeprefix("TYPE_"))


def lengths(shape: openvino.PartialShape) -> list[int]:
    return [-1 if length.is_dynamic else length.get_length() for length in shape]


@pytest.mark.parametrize("line", LINES)
def test_openvino_gives_the_recorded_answers(left: Folder, line: str) -> None:
    served = left.served[line]
    content = (version_folder(left.root, line, NUMBER) / SAMPLE_FILE).read_bytes()
    sample = samples.load(content, (*served.inputs, *served.outputs))
    # By itself it computes in bfloat16 where the processor can.
    whole = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(left.network(line), "CPU", whole)
    found = compiled({spec.name: sample[spec.name] for spec in served.inputs})
    output = served.outputs[0]
    output.check(found[output.name])
    distance = served.signature.closeness(found[output.name], sample[output.name])
    assert distance <= CLOSE
