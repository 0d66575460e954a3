import numpy as np
import polars as pl
import pytest

from models.objectives import Classification, Objective, Primary, Regression

MINUTES = Regression(target="minutes", unit="min", low=0, high=100)
ANIMAL = Classification(target="animal", labels=("cat", "dog", "owl"))
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], np.float32)


def failing(objective: Objective, column: pl.Series) -> list[list[str]]:
    rows = pl.DataFrame({objective.target: column})
    return [
        [c.reason for c in objective.checks() if rows[i].select(c.holds).item() is not True]
        for i in range(rows.height)
    ]


# ---- how much worse


@pytest.mark.parametrize(
    ("better", "value", "reference", "loss"),
    [
        ("higher", 0.9, 1.0, 0.1),
        ("higher", 1.0, 0.8, -0.25),
        ("lower", 11.0, 10.0, 0.1),
        ("lower", 9.0, 10.0, -0.1),
        ("lower", -0.5, -1.0, 0.5),
    ],
)
def test_loss_is_a_fraction_of_the_reference_and_positive_when_worse(
    better: str, value: float, reference: float, loss: float
) -> None:
    primary = Primary(name="m", better=better)  # type: ignore[arg-type]
    assert primary.loss(value, reference) == pytest.approx(loss)


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_losing_nothing_of_nothing_is_no_loss(better: str) -> None:
    assert Primary(name="m", better=better).loss(0.0, 0.0) == 0.0  # type: ignore[arg-type]


def test_an_undefined_metric_has_an_undefined_loss() -> None:
    assert np.isnan(Primary(name="m", better="lower").loss(float("nan"), 1.0))


# ---- regression


def test_implausible_targets_fail_with_the_reason() -> None:
    values = pl.Series([0.0, 100.0, None, float("nan"), float("inf"), -0.1, 100.1])
    found = failing(MINUTES, values)
    assert found[:2] == [[], []]
    assert found[2][0] == "missing"
    assert found[3][0] == found[4][0] == "not finite"
    assert found[5] == found[6] == ["not within 0 to 100 min"]


def test_a_target_without_bounds_must_be_finite_still() -> None:
    found = failing(
        Regression(target="t", unit="1"), pl.Series([1e300, float("inf"), float("-inf")])
    )
    assert [reasons[:1] for reasons in found] == [[], ["not finite"], ["not finite"]]


def test_a_fitted_regression_knows_mean_and_deviation_of_all_partitions() -> None:
    parts = [[1.0, 2.0], [6.0]]
    summaries = [MINUTES.summarise(pl.DataFrame({"minutes": part})) for part in parts]
    found = MINUTES.fit(summaries)
    assert (found.mean, found.deviation) == (pytest.approx(3.0), pytest.approx(np.std([1, 2, 6])))
    assert found.model_copy(update={"mean": 0.0, "deviation": 1.0}) == MINUTES


def test_regression_metrics() -> None:
    predicted, target = np.array([1.0, 2.0, 3.0], np.float32), np.array([1, 4, 6], np.float32)
    found = MINUTES.measure(predicted, target)
    assert found == {"rmse": pytest.approx(np.sqrt(13 / 3)), "mae": pytest.approx(5 / 3)}


def test_the_best_constant_of_a_regression_is_the_mean() -> None:
    name, predicted = MINUTES.constant(np.array([1.0, 2.0, 6.0]), 2)
    assert (name, predicted.tolist()) == ("mean", [3.0, 3.0])


def test_a_regression_answers_with_value_and_unit() -> None:
    assert MINUTES.answer(np.array([1.23456, 7], np.float32)) == [
        {"minutes": 1.2346, "unit": "min"},
        {"minutes": 7.0, "unit": "min"},
    ]


# ---- classification


def test_a_label_the_line_lacks_fails_with_the_reason() -> None:
    found = failing(ANIMAL, pl.Series(["owl", None, "ant", "Cat"]))
    assert found[0] == []
    assert found[1][0] == "missing"
    assert found[2] == found[3] == ["not one of the line's classes"]


def test_labels_are_encoded_in_the_order_of_the_line() -> None:
    rows = pl.DataFrame({"animal": ["owl", "cat", "dog"]})
    assert ANIMAL.encode(rows).tolist() == [2, 0, 1]
    assert ANIMAL.encode(rows).dtype == np.int64


def test_a_class_without_training_rows_cannot_be_taught() -> None:
    summaries = [ANIMAL.summarise(pl.DataFrame({"animal": part})) for part in (["cat"], ["dog"])]
    with pytest.raises(ValueError, match="no training row has the class owl"):
        ANIMAL.fit(summaries)
    more = ANIMAL.summarise(pl.DataFrame({"animal": ["owl", "cat"]}))
    assert ANIMAL.fit([*summaries, more]) == ANIMAL


def test_classification_metrics() -> None:
    found = ANIMAL.measure(PROBABILITIES, np.array([0, 2, 0]))
    logs = -np.log([0.7, 0.8, 0.3]).mean()
    assert found == {"accuracy": pytest.approx(2 / 3), "log_loss": pytest.approx(logs, rel=1e-6)}


def test_certainty_of_the_wrong_class_costs_a_finite_amount() -> None:
    found = ANIMAL.measure(np.array([[1.0, 0.0, 0.0]]), np.array([1]))
    assert np.isfinite(found["log_loss"])
    assert found["log_loss"] > 20


def test_the_best_constant_of_a_classification_is_the_shares() -> None:
    name, predicted = ANIMAL.constant(np.array([0, 0, 1, 0]), 3)
    assert name == "majority"
    assert predicted.tolist() == [[0.75, 0.25, 0.0]] * 3


def test_a_classification_answers_with_label_and_probabilities() -> None:
    (first, *_, last) = ANIMAL.answer(PROBABILITIES)
    assert first == {
        "animal": "cat",
        "probability": 0.7,
        "probabilities": {"cat": 0.7, "dog": 0.2, "owl": 0.1},
    }
    assert last["animal"] == "dog"


# ---- both


@pytest.mark.parametrize(
    ("objective", "predicted", "target"),
    [
        (MINUTES, np.arange(6.0), np.array([1.0, 1, 4, 4, 9, 0])),
        (ANIMAL, np.tile(PROBABILITIES, (2, 1)), np.array([0, 1, 2, 2, 2, 1])),
    ],
)
def test_metrics_of_resamples_are_those_of_the_resampled_rows(
    objective: Objective, predicted: np.ndarray, target: np.ndarray
) -> None:
    samples = np.random.default_rng(0).integers(0, 6, (5, 6))
    losses = objective.losses(predicted, target)
    found = objective.metrics({name: values[samples] for name, values in losses.items()})
    assert objective.primary.name in found
    for index, chosen in enumerate(samples):
        alone = objective.measure(predicted[chosen], target[chosen])
        assert {name: values[index] for name, values in found.items()} == pytest.approx(alone)


def test_answers_as_columns_say_what_answers_as_records_say() -> None:
    table = ANIMAL.table(PROBABILITIES)
    for row, answer in zip(table.iter_rows(named=True), ANIMAL.answer(PROBABILITIES), strict=True):
        assert row["animal"] == answer["animal"]
        assert row["probability"] == pytest.approx(answer["probability"])
        assert row["probabilities"] == pytest.approx(answer["probabilities"])
    output = np.array([1.5, 2.5], np.float32)
    assert MINUTES.table(output).to_dict(as_series=False) == {"minutes": [1.5, 2.5]}
    # An objective of somebody's own has the same columns as its records.
    assert Objective.table(MINUTES, output).columns == ["minutes", "unit"]
