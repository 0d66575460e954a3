"""What travels with the weights of a version: how inputs are encoded and answers are read."""

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializeAsAny

from models.data import Features
from models.objectives import Objective
from models.open import Frozen

MODEL_FILE = "model.onnx"
SIGNATURE_FILE = "signature.json"
SAMPLE_FILE = "sample.safetensors"
MANIFEST_FILE = "manifest.json"
VERSION_FILE = "version.json"
PROVENANCE_FILE = "provenance.json"
VERDICT_FILE = "verdict.json"


class Signature(Frozen):
    """Fitted preprocessing and objective: enough to turn raw input into an answer, without torch.

    `SAMPLE_FILE` beside it holds a few encoded inputs, each under its tensor's name, and the
    output the uncompressed network gave for them under the output's name.
    """

    features: SerializeAsAny[Features]
    objective: SerializeAsAny[Objective]

    def closeness(self, found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
        """How far two outputs are apart, as the objective measures it; see there."""
        return self.objective.closeness(found, expected)
