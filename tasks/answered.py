"""Served models on the test rows of a dataset: read, answered and scored a few at a time.

What stays is a few numbers a row; the answers of a language model alone are a thousand for each
character.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data import Features
from models.digests import Manifest
from models.objectives import Floats
from models.signature import SIGNATURE_FILE, Signature, network_file
from models.tensors import TensorSpec
from tasks.dataset import chunks
from tasks.evaluate import SMALLEST_SLICE, Columns
from tasks.refs import Champion, Dataset
from tasks.store import store


class UnreadableError(ValueError):
    """A model has no words for a row that was cleaned for another."""


class Answered(NamedTuple):
    """Some test rows, what a served model answers, [n, ...], and what is right."""

    table: pl.DataFrame
    predicted: Floats
    target: NDArray[Any]


def answered(manifest: Manifest, dataset: Dataset) -> Iterator[Answered]:
    """A served model's answers to the test rows, in their order, with its own preprocessing.

    Raises UnreadableError.
    """
    from tasks.inference import BATCH, predict, session

    signature = _signature(manifest)
    model = session(store().get_file(manifest, network_file(manifest.files)))
    for table in chunks(dataset, "test", signature.objective.at_once(BATCH)):
        try:
            inputs, target = signature.features.encode(table), signature.objective.encode(table)
        except pl.exceptions.PolarsError as error:
            raise UnreadableError(str(error).partition("\n")[0]) from error
        yield Answered(table, predict(model, inputs), target)


def losses(manifest: Manifest, dataset: Dataset) -> dict[str, Floats]:
    """Per-row scores, [n] each, of a served model on all test rows; raises UnreadableError."""
    objective, found = _signature(manifest).objective, Columns()
    for part in answered(manifest, dataset):
        found.add(objective.losses(part.predicted, part.target))
    return found.whole()


def chosen(losses: dict[str, Floats], rows: NDArray[np.bool_]) -> dict[str, Floats]:
    """The scores of some rows."""
    return {name: values[rows] for name, values in losses.items()}


def incomparable(ours: Signature, manifest: Manifest) -> str | None:
    """Why a served model cannot be scored beside one with our signature, if so."""
    theirs = _signature(manifest)
    if _encoded(theirs.features) != _encoded(ours.features):
        return "its inputs have other names, types or shapes"
    return ours.objective.incomparable(theirs.objective)


def rival(
    champion: Champion, dataset: Dataset, fresh: NDArray[np.bool_]
) -> tuple[str | None, dict[str, Floats]]:
    """Why the champion cannot be scored on the fresh test rows, if so, or else its scores."""
    obstacle = _too_few(fresh) or incomparable(dataset.signature, champion.manifest)
    if obstacle is not None:
        return obstacle, {}
    try:
        # All rows and then some of them: a row's last bits may follow those computed with it.
        return None, chosen(losses(champion.manifest, dataset), fresh)
    except UnreadableError as error:
        return str(error), {}


def _too_few(fresh: NDArray[np.bool_]) -> str | None:
    """Why the test rows that are left cannot tell two models apart, if so."""
    left = np.count_nonzero(fresh)
    if left == len(fresh) or left >= SMALLEST_SLICE:
        return None
    return (
        f"it had seen all but {left:,} of {len(fresh):,} in training or validation,"
        f" {SMALLEST_SLICE} are needed"
    )


def _signature(manifest: Manifest) -> Signature:
    return Signature.model_validate_json(store().get_file(manifest, SIGNATURE_FILE))


def _encoded(features: Features) -> list[TensorSpec]:
    """The inputs less a state, which every network has its own of."""
    return [spec for spec in features.inputs if spec != features.state]
