import numpy as np
import pytest

from models.objectives import Classification, Regression
from tasks.dataset import rows
from tasks.evaluate import intervals
from tasks.store import store
from tests.tasks.conftest import Trained


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
