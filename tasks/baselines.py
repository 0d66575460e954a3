"""What simple models make of the same data: the lines every network must beat."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import Features, Tensors
from models.language import NextToken, frequencies
from models.objectives import Classification, Floats
from models.tables import TableFeatures
from models.texts import TEXT, TextFeatures
from models.vocabulary import PADDING
from tasks.dataset import rows
from tasks.refs import Dataset

ALPHA = 1.0
# Inverse strength of the logistic regression's penalty: the best of 1 and 4 on Chinese reviews.
STRENGTH = 4.0


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


def of_text(
    dataset: Dataset, inputs: Tensors, target: NDArray[Any], test: Tensors
) -> Iterator[tuple[str, Floats]]:
    """Name and predictions for the test rows of the baseline of a text objective, if it is one."""
    signature = dataset.signature
    if isinstance(signature.objective, NextToken):
        width = signature.objective.width
        yield "bigram", _bigram(inputs["tokens"], target, width)[test["tokens"]]
    if isinstance(signature.objective, Classification) and isinstance(
        signature.features, TextFeatures
    ):
        train, held_out = (rows(dataset, s).get_column(TEXT).to_list() for s in ("train", "test"))
        yield "tf-idf logistic", _tf_idf(train, target, held_out)


def _tf_idf(train: list[str], target: NDArray[Any], test: list[str]) -> NDArray[np.float64]:
    """Probabilities [m, classes] of logistic regression on weighted characters and their pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    weights = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, lowercase=False)
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit(weights.fit_transform(train), target)
    found: NDArray[np.float64] = model.predict_proba(weights.transform(test))
    return found


def _bigram(tokens: NDArray[Any], following: NDArray[Any], width: int) -> NDArray[np.float32]:
    """Log-probabilities [token, next token] as counted; a pair never seen counts as a share of 1.

    That share is how often the next token is seen at all (absolute count 1 of the unigram).
    """
    there = following != PADDING
    counts = np.zeros((width, width))
    np.add.at(counts, (tokens[there], following[there]), 1)
    counts += frequencies(following, width)
    found: NDArray[np.float32] = np.log(counts / counts.sum(axis=1, keepdims=True)).astype("f4")
    return found
