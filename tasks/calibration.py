"""Do probabilities mean what they say? Two measures for classes, both better when lower."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.objectives import Better, Classification, Floats, Objective

BINS = 15
DIRECTIONS: dict[str, Better] = {"calibration_error": "lower", "brier": "lower"}


def calibration(objective: Objective, predicted: Floats, target: NDArray[Any]) -> dict[str, float]:
    """`calibration_error` and `brier` of probabilities [n, classes]; nothing for other outputs."""
    if not isinstance(objective, Classification):
        return {}
    return {
        "calibration_error": expected_calibration_error(predicted, target),
        "brier": brier(predicted, target),
    }


def expected_calibration_error(predicted: Floats, target: NDArray[Any]) -> float:
    """Mean distance of confidence and accuracy over 15 equal bins of confidence.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (2017).
    """
    confidence = predicted.max(axis=1).astype(np.float64)
    correct = (predicted.argmax(axis=1) == target).astype(np.float64)
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(place, weights=correct - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(target))


def brier(predicted: Floats, target: NDArray[Any]) -> float:
    """Mean squared distance of probabilities and truth, 0 to 2 (Brier 1950)."""
    truth = np.eye(predicted.shape[1])[target]
    return float(np.mean(np.sum((predicted.astype(np.float64) - truth) ** 2, axis=1)))
