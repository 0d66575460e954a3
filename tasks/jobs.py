"""What the stages hand to their isolated processes; light, so that no stage imports torch."""

from pydantic import SerializeAsAny

from models.digests import Digest, Manifest
from models.open import Frozen
from models.signature import Signature
from models.spec import Budget, Family, Gate, Training
from tasks.refs import Artifact, Champion, Dataset, Report, Weights


class TrainJob(Frozen):
    """What the trainer needs; `checkpoint` names where it keeps its place."""

    model: SerializeAsAny[Family]
    training: Training
    dataset: Dataset
    checkpoint: Digest


class EvaluateJob(Frozen):
    """A trained network to be judged on the test rows."""

    model: SerializeAsAny[Family]
    dataset: Dataset
    weights: Weights
    threads: int
    confidence: float


class CompressJob(Frozen):
    """A trained network to be compressed within a budget, and how it was trained.

    `cache` names where measured candidates are found again, whatever the budget; None is nowhere.
    """

    model: SerializeAsAny[Family]
    training: Training
    budget: Budget
    dataset: Dataset
    weights: Weights
    cache: Digest | None = None


class GateJob(Frozen):
    """A compressed model to be judged on the test rows, beside the champion."""

    gate: Gate
    budget: Budget
    dataset: Dataset
    artifact: Artifact
    report: Report
    champion: Champion | None


class ScoresJob(Frozen):
    """Two served models, the rows they were made from, and how sure to be of a difference."""

    a: Manifest
    b: Manifest
    dataset_a: Dataset
    dataset_b: Dataset
    confidence: float


class FingerprintJob(Frozen):
    """What the numeric fingerprint of a place is taken with."""

    model: SerializeAsAny[Family]
    signature: Signature
    threads: int
    device: str = "cpu"


class Fingerprints(Frozen):
    """The numeric fingerprint, by library."""

    digests: dict[str, Digest]
