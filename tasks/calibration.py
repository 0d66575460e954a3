"""Do probabilities mean what they say? Two measures for classes, both better when lower."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.objectives import Better, Classification, Floats, Objective

BINS = 15
DIRECTIONS: dict[str, Better] = {"calibration_error": "lower", "brier": "lower"}


def certainties(
    objective: Objective, predicted: Floats, target: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """What calibration is a function of: per-row numbers, [n] each, of probabilities [n, classes].

    Nothing for other outputs.
    """
    if not isinstance(objective, Classification):
        return {}
    truth = np.eye(predicted.shape[1])[target]
    return {
        "confidence": predicted.max(axis=1).astype(np.float64),
        "correct": (predicted.argmax(axis=1) == target).astype(np.float64),
        "squared": np.sum((predicted.astype(np.float64) - truth) ** 2, axis=1),
    }


def calibration(rows: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """`calibration_error`, and `brier`: the mean squared distance of probabilities and truth.

    The first is the mean distance of confidence and accuracy over 15 equal bins of confidence.
    Sources: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (2017);
    Brier (1950), 0 to 2.
    """
    if not rows:
        return {}
    confidence = rows["confidence"]
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(place, weights=rows["correct"] - confidence, minlength=BINS)
    return {
        "calibration_error": float(np.abs(gaps).sum() / len(confidence)),
        "brier": float(np.mean(rows["squared"])),
    }
