from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from torch import nn

from models.data import Tensors
from models.objectives import Classification, Regression
from models.signature import Signature
from tasks import baselines, evaluate, trainer
from tasks.batches import Stored
from tasks.dataset import rows
from tasks.evaluate import intervals, measure
from tasks.jobs import EvaluateJob
from tasks.store import store
from tests.tasks.conftest import MODEL, Trained


def test_the_report_beats_its_baselines_where_the_network_learnt(trained: Trained) -> None:
    report = trained.report
    assert set(report.metrics) == {"rmse", "mae"}
    assert set(report.baselines) == {"mean", "ridge"}
    assert report.metrics["rmse"].value < report.baselines["mean"]["rmse"] / 2
    assert report.baselines["ridge"]["rmse"] < report.baselines["mean"]["rmse"] / 2


def test_metrics_are_those_of_the_stored_losses(trained: Trained) -> None:
    losses = store().get_table(trained.report.losses)
    assert losses.height == trained.dataset.rows["test"] == rows(trained.dataset, "test").height
    found = trained.report.metrics["rmse"].value
    assert found == pytest.approx(np.sqrt(losses["squared"].mean()))  # type: ignore[arg-type]
    assert all(store().exists(key) for key in trained.report.stored)


def test_rows_are_judged_a_few_at_a_time_and_the_report_is_the_same(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    whole = trainer.predict

    def few(network: nn.Module, names: list[str], inputs: Tensors) -> NDArray[Any]:
        answered.append(len(next(iter(inputs.values()))))
        return whole(network, names, inputs)

    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 8)
    monkeypatch.setattr(trainer, "predict", few)
    report = measure(
        EvaluateJob(
            model=MODEL, dataset=trained.dataset, weights=trained.weights, threads=1, confidence=0.9
        ),
        lambda _: None,
    )
    assert max(answered) == 8
    assert sum(answered) == trained.dataset.rows["test"]
    assert report.slices.keys() == trained.report.slices.keys()
    assert report.baselines["ridge"] == pytest.approx(trained.report.baselines["ridge"])
    for name, metric in trained.report.metrics.items():
        assert report.metrics[name].value == pytest.approx(metric.value, rel=1e-5)


def test_baselines_learn_from_no_more_rows_than_fit(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[int] = []
    fitted = baselines.fitted

    def counted(signature: Signature, train: pl.DataFrame) -> Iterator[tuple[str, Any]]:
        taught.append(train.height)
        return fitted(signature, train)

    monkeypatch.setattr(baselines, "fitted", counted)
    monkeypatch.setattr(evaluate, "LEARNT_FROM", 0.001)
    measure(
        EvaluateJob(
            model=MODEL, dataset=trained.dataset, weights=trained.weights, threads=1, confidence=0.9
        ),
        lambda _: None,
    )
    row = Stored(trained.dataset, "train").row_bytes
    assert 0 < taught[0] <= 1000 / row < trained.dataset.rows["train"]


@pytest.mark.parametrize(("values", "rows"), [(1, 1024), (10_000, 419), (10**9, 1)])
def test_wide_outputs_are_computed_for_fewer_rows(values: int, rows: int) -> None:
    class Wide(Regression):
        @property
        def values(self) -> int:
            return values

    assert Wide(target="t", unit="1").at_once(1024) == rows


def test_an_interval_holds_its_metric_and_narrows_with_rows() -> None:
    objective = Regression(target="t", unit="1")
    random = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        errors = random.normal(size=count)
        found = intervals(objective, objective.losses(errors, np.zeros(count)), 0.95)["rmse"]
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 5


def test_intervals_repeat_and_widen_with_confidence() -> None:
    objective = Classification(target="t", labels=("a", "b"))
    right = np.random.default_rng(0).random(200) < 0.8
    predicted = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    losses = objective.losses(predicted, np.zeros(200, np.int64))
    first, again, wider = (intervals(objective, losses, c) for c in (0.9, 0.9, 0.99))
    assert first == again
    assert wider["accuracy"].low < first["accuracy"].low
    assert first["accuracy"].value == pytest.approx(right.mean())


def test_no_error_at_all_has_an_interval_too() -> None:
    objective = Regression(target="t", unit="1")
    found = intervals(objective, objective.losses(np.zeros(20), np.zeros(20)), 0.95)
    assert (found["rmse"].low, found["rmse"].value, found["rmse"].high) == (0.0, 0.0, 0.0)
