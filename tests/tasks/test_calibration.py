from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.objectives import Classification, Regression
from tasks.calibration import calibration, certainties

LABELS = Classification(target="t", labels=("a", "b"))


def measured(predicted: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
    return calibration(certainties(LABELS, predicted, target))


def test_probabilities_that_come_true_have_no_error() -> None:
    random = np.random.default_rng(0)
    chance = random.uniform(0.5, 1, 200_000)
    predicted = np.stack([chance, 1 - chance], axis=1)
    target = (random.random(len(chance)) > chance).astype(np.int64)
    assert measured(predicted, target)["calibration_error"] < 0.005
    sure = np.where(predicted > 0.5, 0.999, 0.001)
    assert measured(sure, target)["calibration_error"] == pytest.approx(0.249, abs=0.005)


def test_brier_by_hand() -> None:
    predicted = np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    found = measured(predicted, np.array([0, 1, 1]))
    assert found["brier"] == pytest.approx((0 + 0.5 + 2) / 3)


def test_only_classes_have_calibration() -> None:
    predicted, target = np.array([[0.9, 0.1]]), np.array([0])
    assert set(measured(predicted, target)) == {"calibration_error", "brier"}
    regression = Regression(target="t", unit="1")
    assert calibration(certainties(regression, predicted[:, 0], target)) == {}
