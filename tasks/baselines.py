"""What a linear model makes of the same features: the line every network must beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import Features, Tensors
from models.tables import TableFeatures

ALPHA = 1.0


def linear(
    features: Features, inputs: Tensors, target: NDArray[Any], test: Tensors
) -> NDArray[np.float64]:
    """Ridge predictions [m] for the test inputs; numbers standardised, categories one-hot."""
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha=ALPHA, solver="cholesky")
    ridge.fit(_design(features, inputs), target.astype(np.float64))
    predicted: NDArray[np.float64] = ridge.predict(_design(features, test))
    return predicted


def _design(features: Features, inputs: Tensors) -> NDArray[np.float64]:
    if not isinstance(features, TableFeatures):
        flat = [t.reshape(len(t), -1) for t in inputs.values()]
        return np.concatenate(flat, axis=1).astype(np.float64)
    parts = []
    if features.numbers:
        mean = np.array([n.mean for n in features.numbers])
        deviation = np.array([n.deviation for n in features.numbers])
        parts.append(np.nan_to_num((inputs["numbers"] - mean) / deviation))
    for index, category in enumerate(features.categories):
        one_hot = np.eye(len(category.vocabulary) + 1)
        parts.append(one_hot[inputs["categories"][:, index]])
    return np.concatenate(parts, axis=1)
