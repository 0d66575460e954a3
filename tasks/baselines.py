"""What simple models make of the same data: the lines every network must beat.

They learn from training rows in memory, so from no more of them than fit; of more, every so many.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data import Features, Tensors
from models.language import NextToken, frequencies
from models.objectives import Classification, Floats, Regression
from models.signature import Signature
from models.tables import TableFeatures
from models.texts import TEXT, TextFeatures
from models.vocabulary import PADDING

ALPHA = 1.0
# Inverse strength of the logistic regression's penalty: the best of 1 and 4 on Chinese reviews.
STRENGTH = 4.0

Baseline = Callable[[pl.DataFrame, Tensors], Floats]
"""Predictions for rows, given as cleaned and as encoded."""


def fitted(signature: Signature, train: pl.DataFrame) -> Iterator[tuple[str, Baseline]]:
    """Name and model of every baseline of the line, fitted to the cleaned training rows."""
    features, objective = signature.features, signature.objective
    inputs, target = features.encode(train), objective.encode(train)
    title, best = objective.constant(target, 1)
    yield title, lambda rows, _: np.broadcast_to(best, (rows.height, *best.shape[1:]))
    if isinstance(objective, Regression):
        yield "ridge", _ridge(features, inputs, target)
    if isinstance(objective, NextToken):
        yield "bigram", _bigram(inputs["tokens"], target, objective.width)
    if isinstance(objective, Classification) and isinstance(features, TextFeatures):
        yield "tf-idf logistic", _tf_idf(train.get_column(TEXT).to_list(), target)


def _ridge(features: Features, inputs: Tensors, target: NDArray[Any]) -> Baseline:
    """Ridge predictions [m]; numbers standardised, categories one-hot."""
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha=ALPHA, solver="cholesky")
    ridge.fit(_design(features, inputs), target.astype(np.float64))
    return lambda _, tensors: ridge.predict(_design(features, tensors))


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


def _tf_idf(train: list[str], target: NDArray[Any]) -> Baseline:
    """Probabilities [m, classes] of logistic regression on weighted characters and their pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    weights = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, lowercase=False)
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit(weights.fit_transform(train), target)
    return lambda rows, _: model.predict_proba(weights.transform(rows.get_column(TEXT).to_list()))


def _bigram(tokens: NDArray[Any], following: NDArray[Any], width: int) -> Baseline:
    """Log-probabilities [m, tokens, next] as counted; a pair never seen counts as a share of 1.

    That share is how often the next token is seen at all (absolute count 1 of the unigram).
    """
    there = following != PADDING
    counts = np.zeros((width, width))
    np.add.at(counts, (tokens[there], following[there]), 1)
    counts += frequencies(following, width)
    found: NDArray[np.float32] = np.log(counts / counts.sum(axis=1, keepdims=True)).astype("f4")
    return lambda _, tensors: found[tensors["tokens"]]
