"""What travels with the weights of a version: how inputs are encoded and answers are read."""

from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializeAsAny

from models.data import Features
from models.objectives import Objective
from models.open import Frozen
from models.tensors import TensorSpec

if TYPE_CHECKING:
    # To run it would make cleaning a function of how a line trains.
    from models.spec import Family

MODEL_FILE = "model.onnx"
PROGRAM_FILE = "model.pt2"
"""Instead of it, where ONNX Runtime does not run the network: see `models.program`."""
SIGNATURE_FILE = "signature.json"
SAMPLE_FILE = "sample.safetensors"
MANIFEST_FILE = "manifest.json"
VERSION_FILE = "version.json"
PROVENANCE_FILE = "provenance.json"
VERDICT_FILE = "verdict.json"
NEXT_STATE = "next_state"


def network_file(names: Container[str]) -> str:
    """Which of a version's files is its network."""
    return PROGRAM_FILE if PROGRAM_FILE in names and MODEL_FILE not in names else MODEL_FILE


class Signature(Frozen):
    """Fitted preprocessing and objective: enough to turn raw input into an answer, without torch.

    `SAMPLE_FILE` beside it holds a few encoded inputs, each under its tensor's name, and the
    output the uncompressed network gave for them under the output's name: see `models.samples`.
    """

    features: SerializeAsAny[Features]
    objective: SerializeAsAny[Objective]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors the served network gives: the objective's, and at last the state after it."""
        state = self.features.state
        after = () if state is None else (state.model_copy(update={"name": NEXT_STATE}),)
        return (self.objective.output, *self.objective.further, *after)

    def served(self, family: "Family") -> "Signature":
        """The signature of the network as it is served: with the state that the family carries."""
        values = family.carried()
        if not values:
            return self
        return self.model_copy(update={"features": self.features.carrying(values)})

    def closeness(self, found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
        """How far two outputs are apart, as the objective measures it; see there."""
        return self.objective.closeness(found, expected)
