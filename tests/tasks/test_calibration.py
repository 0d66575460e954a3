import numpy as np
import pytest

from models.objectives import Classification, Regression
from tasks.calibration import brier, calibration, expected_calibration_error


def test_probabilities_that_come_true_have_no_error() -> None:
    random = np.random.default_rng(0)
    chance = random.uniform(0.5, 1, 200_000)
    predicted = np.stack([chance, 1 - chance], axis=1)
    target = (random.random(len(chance)) > chance).astype(np.int64)
    assert expected_calibration_error(predicted, target) < 0.005
    sure = np.where(predicted > 0.5, 0.999, 0.001)
    assert expected_calibration_error(sure, target) == pytest.approx(0.249, abs=0.005)


def test_brier_by_hand() -> None:
    predicted = np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    assert brier(predicted, np.array([0, 1, 1])) == pytest.approx((0 + 0.5 + 2) / 3)


def test_only_classes_have_calibration() -> None:
    predicted, target = np.array([[0.9, 0.1]]), np.array([0])
    labels = Classification(target="t", labels=("a", "b"))
    assert set(calibration(labels, predicted, target)) == {"calibration_error", "brier"}
    assert calibration(Regression(target="t", unit="1"), predicted[:, 0], target) == {}
