"""Which parts of an input an answer rests on, found by asking the served network itself.

Images: occlusion (Zeiler and Fergus 2014), a grey window is moved over the image and the answer's
drop noted. Texts and sound: the same over tokens, in whose place an unknown one is put, and over
time (`explain_sequence`). Tables: Shapley values by sampled orders of the features (Castro et al.
2009), against the training means; they add up to the answer's distance from the mean row's. All
need nothing but the network's outputs, so they explain what is served, int8 and all.
"""

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.serving.explain_sequence import of_sound, of_text
from deployments.serving.explanation import CHUNK, Floats, Question, Score, Words, heat_map
from deployments.serving.protocol import ProtocolError, Tensors
from deployments.serving.session import Served
from models.audio import AudioFeatures
from models.images import ImageFeatures
from models.objectives import Classification, Regression
from models.tables import UNKNOWN, TableFeatures
from models.texts import TextFeatures
from models.transcription import Transcription

WINDOWS = 7
"""Occluding windows side by side; they overlap by half."""
MOST_ROWS, MOST_ORDERS = 2048, 64
"""Bounds of the rows computed for a table's row, and of the sampled orders."""


def explainable(served: Served) -> bool:
    """Whether `question` has an answer for rows of this version."""
    features, objective = served.signature.features, served.signature.objective
    if isinstance(features, AudioFeatures):
        return isinstance(objective, Transcription)
    kinds = ImageFeatures, TableFeatures, TextFeatures
    return isinstance(features, kinds) and isinstance(objective, Regression | Classification)


def question(served: Served, tensors: Tensors, label: str | None) -> Question:
    """What to compute to explain one row: its predicted class, or the one called `label`.

    Raises ProtocolError 400 for an unknown label, 422 for a kind that cannot be explained.
    """
    features, objective = served.signature.features, served.signature.objective
    if isinstance(features, ImageFeatures):
        return _image(features, tensors["image"], *_score(served, label))
    if isinstance(features, TableFeatures):
        return _table(features, tensors, *_score(served, label))
    if isinstance(features, TextFeatures):
        return of_text(features, tensors["tokens"], *_score(served, label))
    if isinstance(features, AudioFeatures) and isinstance(objective, Transcription):
        return of_sound(features, objective, tensors)
    raise ProtocolError(422, f"what {served.line} answers is not explained here", "unexplained")


def _score(served: Served, label: str | None) -> tuple[Words, Score]:
    """What is explained, in words and as a function of outputs [rows, ...] whose last is the row's.

    Both are given all outputs; the row itself is the last one.
    """
    objective = served.signature.objective
    if isinstance(objective, Regression):
        return lambda _: f"{objective.target} in {objective.unit}", lambda out: out.reshape(-1)
    if not isinstance(objective, Classification):
        raise ProtocolError(422, f"{served.line} gives neither classes nor a number", "unexplained")
    labels = objective.labels
    if label is not None and label not in labels:
        raise ProtocolError(400, f"no class {label[:60]!r}: there are {', '.join(labels)[:300]}")

    def chosen(out: Floats) -> int:
        return int(out[-1].argmax()) if label is None else labels.index(label)

    return lambda out: f"probability of {labels[chosen(out)]}", lambda out: out[:, chosen(out)]


def _image(
    features: ImageFeatures, image: NDArray[np.uint8], words: Words, score: Score
) -> Question:
    height, width = image.shape[2:]
    tall, wide = math.ceil(height / WINDOWS), math.ceil(width / WINDOWS)
    tops = range(0, height - tall + 1, max(1, tall // 2))
    lefts = range(0, width - wide + 1, max(1, wide // 2))
    places = [(top, left) for top in tops for left in lefts]
    grey = np.uint8(round(features.mean))

    def chunks() -> Iterator[Tensors]:
        for start in range(0, len(places) + 1, CHUNK):
            some = places[start : start + CHUNK]
            whole = start + CHUNK > len(places)
            rows = np.repeat(image, len(some) + whole, axis=0)  # the last one stays as it is
            for row, (top, left) in zip(rows, some, strict=False):
                row[:, top : top + tall, left : left + wide] = grey
            yield {"image": rows}

    def explain(out: Floats) -> dict[str, Any]:
        scores = score(out).astype(np.float64)
        heat, covered = np.zeros((height, width)), np.zeros((height, width))
        for (top, left), drop in zip(places, scores[-1] - scores[:-1], strict=True):
            heat[top : top + tall, left : left + wide] += drop
            covered[top : top + tall, left : left + wide] += 1
        heat /= np.maximum(covered, 1)
        return {
            "method": "occlusion",
            "explained": words(out),
            "value": float(scores[-1]),
            "window": [tall, wide],
            "occluded_by": int(grey),
            "attributions": np.round(heat, 6).tolist(),
            "png": base64.b64encode(heat_map(image[0], heat)).decode(),
        }

    return Question(len(places) + 1, chunks(), explain)


def _table(features: TableFeatures, tensors: Tensors, words: Words, score: Score) -> Question:
    row = {name: tensor[0] for name, tensor in tensors.items()}
    means: Tensors = {
        "numbers": np.array([n.mean for n in features.numbers], np.float32),
        "categories": np.full(len(features.categories), UNKNOWN, np.int64),
    }
    columns = [(name, i) for name, values in row.items() for i in range(len(values))]
    count = max(2, min(MOST_ORDERS, MOST_ROWS // (len(columns) + 1)) // 2 * 2)
    # The same every time, so that an explanation can be asked for again. Each order is followed by
    # its reverse, which cancels most of what an interaction depends on.
    random = np.random.default_rng(0)
    half = [random.permutation(len(columns)) for _ in range(count // 2)]
    orders = [order for one in half for order in (one, one[::-1])]

    def chunks() -> Iterator[Tensors]:
        for order in orders:
            rows = {name: np.tile(means[name], (len(columns) + 1, 1)) for name in row}
            for step, feature in enumerate(order):
                name, i = columns[feature]
                rows[name][step + 1 :, i] = row[name][i]
            for start in range(0, len(columns) + 1, CHUNK):
                yield {name: values[start : start + CHUNK] for name, values in rows.items()}

    def explain(out: Floats) -> dict[str, Any]:
        scores = score(out).astype(np.float64).reshape(count, len(columns) + 1)
        if not np.isfinite(scores).all():
            raise ProtocolError(422, "the model gives no finite answer here", "not_finite")
        found = np.zeros(len(columns))
        for order, steps in zip(orders, scores, strict=True):
            found[order] += np.diff(steps) / count
        attributions = [
            {"feature": _name(features, *column), "value": _value(features, row, *column),
             "attribution": float(value)}
            for column, value in zip(columns, found, strict=True)
        ]  # fmt: skip
        return {
            "method": "shapley_sampling",
            "explained": words(out),
            "value": float(scores[0, -1]),
            "value_of_mean_row": float(scores[0, 0]),
            "orders": count,
            "attributions": sorted(attributions, key=lambda one: -abs(one["attribution"])),
        }

    return Question(count * (len(columns) + 1), chunks(), explain)


def _name(features: TableFeatures, tensor: str, i: int) -> str:
    return (features.numbers if tensor == "numbers" else features.categories)[i].name


def _value(features: TableFeatures, row: Tensors, tensor: str, i: int) -> float | str | None:
    """What the network saw: None for a number that is missing or a category it does not know."""
    if tensor == "numbers":
        return float(row[tensor][i]) if np.isfinite(row[tensor][i]) else None
    index = int(row[tensor][i])
    return None if index == UNKNOWN else features.categories[i].vocabulary[index - 1]
