"""Served models answer the test rows a few at a time."""

import numpy as np
import pytest

from models import objectives
from models.signature import MODEL_FILE, SIGNATURE_FILE, Signature
from tasks.answered import UnreadableError, answered, losses
from tasks.dataset import rows
from tasks.inference import predict, session
from tasks.store import store
from tests.tasks.conftest import Trained


def test_rows_that_fit_one_batch_have_the_bits_of_one_batch(trained: Trained) -> None:
    manifest = trained.artifact.manifest
    signature = Signature.model_validate_json(store().get_file(manifest, SIGNATURE_FILE))
    table = rows(trained.dataset, "test")
    model = session(store().get_file(manifest, MODEL_FILE))
    predicted = predict(model, signature.features.encode(table))
    expected = signature.objective.losses(predicted, signature.objective.encode(table))
    found = losses(manifest, trained.dataset)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_no_more_rows_are_answered_at_once_than_their_output_allows(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, count = trained.artifact.manifest, trained.dataset.rows["test"]
    whole = losses(manifest, trained.dataset)
    monkeypatch.setattr(objectives, "MOST_VALUES", 16)
    parts = list(answered(manifest, trained.dataset))
    assert [len(part.predicted) for part in parts] == [16] * (count // 16) + [count % 16]
    seen = [row for part in parts for row in part.table.get_column("identity")]
    assert seen == rows(trained.dataset, "test").get_column("identity").to_list()
    found = losses(manifest, trained.dataset)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)


def test_a_row_the_model_cannot_read_is_told_apart_from_a_fault(trained: Trained) -> None:
    manifest = trained.artifact.manifest
    signature = Signature.model_validate_json(store().get_file(manifest, SIGNATURE_FILE))
    objective = signature.objective.model_copy(update={"target": "hours"})
    other = signature.model_copy(update={"objective": objective})
    files = {MODEL_FILE: store().get_file(manifest, MODEL_FILE)}
    kept = store().put_folder({SIGNATURE_FILE: other.model_dump_json().encode(), **files})
    with pytest.raises(UnreadableError, match="hours"):
        losses(kept, trained.dataset)
