import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from models.digests import Manifest
from models.objectives import Better, Classification, Primary, Regression
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.spec import Budget, Gate
from models.splits import ByHash
from tasks.answered import losses
from tasks.dataset import rows
from tasks.evaluate import groups
from tasks.gate import Slice, against, broken_floors, judge, named_slices, slice_by_slice
from tasks.gate import decision as decide_on
from tasks.jobs import GateJob
from tasks.refs import Champion, Interval, Verdict
from tasks.store import store
from tests.tasks import samples
from tests.tasks.conftest import Trained, cleaned

GATE = Gate(floors={"rmse": 10.0, "mae": 10.0}, margin=0.01, confidence=0.95)
ANY = Budget(quality_loss=0.9)
CHAMPION = Champion(digest="c" * 64, number=1, manifest=Manifest.of({"a": b""}))


def verdict(trained: Trained, gate: Gate = GATE, budget: Budget = ANY, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "dataset": trained.dataset,
        "artifact": trained.artifact,
        "report": trained.report,
        "champion": None,
    }
    job = GateJob(gate=gate, budget=budget, **{**fields, **changes})
    return judge(job, lambda _: None)


def champion(trained: Trained, scale: float = 1.0) -> Champion:
    """A version that serves, whose every answer is the trained network's times `scale`."""
    manifest = trained.artifact.manifest
    model = onnx.load_model_from_string(store().get_file(manifest, MODEL_FILE))
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == output.name else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "scale"))
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "scale"], [output.name]))
    files = {name: store().get_file(manifest, name) for name in (SIGNATURE_FILE, SAMPLE_FILE)}
    kept = store().put_folder({MODEL_FILE: model.SerializeToString(), **files})
    return Champion(digest="c" * 64, number=1, manifest=kept)


def test_a_first_version_above_the_floors_is_promoted(trained: Trained) -> None:
    found = verdict(trained)
    assert found.decision == "promote"
    assert found.comparison is None
    assert 0 < found.metrics["rmse"] < 10
    assert all(store().exists(key) for key in found.stored)


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_a_broken_floor_refuses_and_is_named(trained: Trained, metric: str) -> None:
    found = verdict(trained, GATE.model_copy(update={"floors": {metric: 1e-6}}))
    assert found.decision == "refuse"
    assert any(reason.startswith(f"{metric} is ") for reason in found.reasons)
    assert any("the floor is 1e-06" in reason for reason in found.reasons)


def test_a_floor_of_exactly_the_value_holds(trained: Trained) -> None:
    value = verdict(trained).metrics["rmse"]
    assert verdict(trained, Gate(floors={"rmse": value})).decision == "promote"


def test_a_floor_for_a_metric_the_line_lacks_is_an_error(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"gate\.floors names 'accuracy'.* metrics are rmse, mae"):
        verdict(trained, Gate(floors={"accuracy": 0.5}))


@pytest.mark.parametrize("gate", [GATE, Gate()], ids=["floors", "no-floors"])
def test_answers_that_are_no_numbers_never_pass(trained: Trained, gate: Gate) -> None:
    broken = champion(trained, scale=float("nan")).manifest
    artifact = trained.artifact.model_copy(update={"manifest": broken, "digest": broken.digest})
    with pytest.raises(ValueError, match=r"rmse is nan.* answers with no numbers"):
        verdict(trained, gate, artifact=artifact)


def test_clearly_worse_than_the_champion_is_held(trained: Trained) -> None:
    worse = champion(trained, scale=1.5).manifest
    artifact = trained.artifact.model_copy(update={"manifest": worse, "digest": worse.digest})
    lenient = Gate(floors={"rmse": 1e6}, margin=0.01)
    budget = Budget(quality_loss=0.999999)
    report = verdict(trained, artifact=artifact, gate=lenient, budget=budget).metrics["rmse"]
    told = trained.report.model_copy(
        update={"metrics": {"rmse": Interval(value=report, low=report, high=report)}}
    )
    found = verdict(
        trained, lenient, budget, artifact=artifact, report=told, champion=champion(trained)
    )
    assert found.decision == "hold"
    assert found.comparison is not None
    assert found.comparison.worse_by.low > 0.01
    assert found.comparison.champion == "c" * 64
    assert "worse than the champion" in found.reasons[0]


def test_better_than_the_champion_is_promoted(trained: Trained) -> None:
    found = verdict(trained, champion=champion(trained, scale=1.5))
    assert found.decision == "promote"
    assert found.comparison is not None
    assert found.comparison.worse_by.high < 0


def test_equal_to_the_champion_is_promoted(trained: Trained) -> None:
    found = verdict(
        trained, GATE.model_copy(update={"margin": 0.0}), champion=champion(trained, scale=1.0)
    )
    assert found.decision == "promote"
    assert found.comparison is not None
    assert found.comparison.worse_by == Interval(value=0.0, low=0.0, high=0.0)


def test_a_broken_floor_refuses_also_what_beats_the_champion(trained: Trained) -> None:
    found = verdict(trained, Gate(floors={"rmse": 1e-6}), champion=champion(trained, scale=1.5))
    assert found.decision == "refuse"
    assert found.comparison is not None


def test_compression_that_cost_more_than_its_budget_is_refused(trained: Trained) -> None:
    half = trained.report.metrics["rmse"].value / 4
    told = trained.report.model_copy(
        update={"metrics": {"rmse": Interval(value=half, low=half, high=half)}}
    )
    found = verdict(trained, budget=Budget(quality_loss=0.5), report=told)
    assert found.decision == "refuse"
    assert found.compression is not None
    by = found.compression.worse_by
    assert re.fullmatch(
        r"compression costs \d+\.\d\d% of rmse on the test rows \(paired interval"
        rf" {re.escape(f'{by.low:+.2%} to {by.high:+.2%}')}\), the budget is 50\.00%",
        found.reasons[0],
    )


def test_no_form_within_the_budget_is_refused(trained: Trained) -> None:
    artifact = trained.artifact.model_copy(update={"within_budget": False})
    found = verdict(trained, artifact=artifact)
    assert found.decision == "refuse"
    assert found.reasons == ("no compressed form is within the budget of size and quality",)


def test_every_named_slice_meets_the_champion(trained: Trained) -> None:
    found = verdict(trained, Gate(slices={"zone": 0.05}), champion=champion(trained, scale=0.7))
    assert found.decision == "promote"
    judged = {s.name: s for s in found.slices}
    assert {*judged, *found.unjudged} == {"zone=east", "zone=north", "zone=south"}
    assert all(s.rows >= 50 or s.name in found.unjudged for s in found.slices)


def test_a_slice_that_got_worse_is_held_though_the_whole_did_not(trained: Trained) -> None:
    objective = trained.dataset.signature.objective
    rows = np.arange(200)
    ours = objective.losses(np.where(rows < 100, 2.0, 0.1) * np.sin(rows), np.zeros(200))
    theirs = objective.losses(np.where(rows < 100, 1.0, 3.0) * np.sin(rows + 1), np.zeros(200))
    slices = {"zone=a": Slice(rows < 100, 0.1), "zone=b": Slice(rows >= 100, 0.1)}
    gate = Gate(slices={"zone": 0.1})
    whole = against(CHAMPION, gate, objective, ours, theirs)
    judged = slice_by_slice(gate, objective, ours, theirs, slices)
    assert whole.worse_by.high < 0
    assert [s.worse for s in judged] == [True, False]
    decision, reasons = decide_on(gate, [], None, whole, judged)
    assert decision == "hold"
    assert reasons[0].startswith("zone=a: worse than the champion by ")


def test_a_margin_for_one_slice_counts_more_than_that_of_its_column(trained: Trained) -> None:
    table = rows(trained.dataset, "test")
    gate = Gate(slices={"zone=east": 0.5, "zone": 0.1})
    signature = trained.dataset.signature
    there = dict(groups(signature.features, signature.objective, table, np.zeros(table.height)))
    found = named_slices(gate, there)
    assert {n: s.margin for n, s in found.items()} == {
        "zone=east": 0.5, "zone=north": 0.1, "zone=south": 0.1,
    }  # fmt: skip


def test_a_slice_the_line_lacks_is_an_error(trained: Trained) -> None:
    with pytest.raises(
        ValueError, match=r"gate\.slices names 'size'; this line has slices by zone"
    ):
        verdict(trained, Gate(slices={"size": 0.1}))


def test_noninferiority_holds_what_is_not_shown(trained: Trained) -> None:
    rival = champion(trained, scale=1.001)
    strict = Gate(margin=1e-6, noninferior=True)
    found = verdict(trained, strict, champion=rival)
    assert verdict(trained, Gate(margin=1e-6), champion=rival).decision == "promote"
    assert found.comparison is not None
    assert (found.decision == "hold") == (found.comparison.worse_by.high > 1e-6)
    assert verdict(trained, Gate(margin=0.5, noninferior=True), champion=rival).decision == (
        "promote"
    )


def test_the_verdict_tells_served_from_uncompressed(trained: Trained) -> None:
    found = verdict(trained).compression
    assert found is not None
    assert found.rows == trained.dataset.rows["test"]
    assert found.worse_by.low <= found.worse_by.value <= found.worse_by.high


def test_the_same_question_has_the_same_verdict(trained: Trained) -> None:
    rival = champion(trained, scale=1.01)
    assert verdict(trained, champion=rival).digest == verdict(trained, champion=rival).digest


def learnt_from(trained: Trained, test: float, scale: float = 1.0) -> Champion:
    """A champion of the same rows, of which another share was the test when it was made."""
    data = samples.TRIPS.model_copy(update={"split": ByHash(test=test, validation=0.2)})
    made_from = cleaned(data, samples.MINUTES)
    return champion(trained, scale).model_copy(update={"dataset": made_from, "unknown": ""})


def test_rows_the_champion_had_seen_judge_neither(trained: Trained) -> None:
    rival = learnt_from(trained, 0.2, scale=1.5)
    assert rival.dataset is not None
    found = verdict(trained, Gate(slices={"zone": 0.05}), champion=rival)
    compared = found.comparison
    assert compared is not None
    table = rows(trained.dataset, "test")
    held_out = rows(rival.dataset, "test").get_column("identity")
    fresh = table.get_column("identity").is_in(held_out.implode()).to_numpy()
    assert 50 <= fresh.sum() < table.height
    assert (compared.rows, compared.seen) == (fresh.sum(), (~fresh).sum())
    objective = trained.dataset.signature.objective
    for scale, value in ((1.0, compared.challenger_metric), (1.5, compared.champion_metric)):
        found_losses = losses(champion(trained, scale).manifest, trained.dataset)
        some = {name: values[fresh] for name, values in found_losses.items()}
        assert value == pytest.approx(float(objective.metrics(some)["rmse"]))
    assert f"{compared.seen} test rows that the champion had seen" in found.reasons[-1]
    # Too few of any zone are left, and floors are for all rows.
    assert found.unjudged == ("zone=east", "zone=north", "zone=south")
    assert found.metrics == verdict(trained).metrics


@pytest.mark.parametrize("rule", ["hold", "promote"])
def test_a_champion_that_had_seen_nearly_all_rows_is_not_compared(
    trained: Trained, rule: Literal["hold", "promote"]
) -> None:
    rival = learnt_from(trained, 0.1)
    found = verdict(trained, Gate(incomparable=rule), champion=rival)
    assert found.decision == rule
    assert found.comparison is None
    assert found.against == rival.digest
    assert re.search(r"it had seen all but \d+ of \d+ in training or valid", found.reasons[0])


def test_a_champion_of_the_same_data_had_seen_no_test_row(trained: Trained) -> None:
    rival = champion(trained).model_copy(update={"dataset": trained.dataset, "unknown": ""})
    found = verdict(trained, champion=rival)
    assert found.comparison is not None
    assert (found.comparison.seen, found.comparison.unknown) == (0, "")
    assert len(found.reasons) == 1


def test_what_the_champion_had_seen_is_said_to_be_unknown(trained: Trained) -> None:
    rival = champion(trained).model_copy(update={"unknown": "its dataset is gone"})
    found = verdict(trained, champion=rival)
    assert found.comparison is not None
    assert found.comparison.rows == trained.dataset.rows["test"]
    assert found.comparison.unknown == "its dataset is gone"
    assert "its dataset is gone" in found.reasons[-1]


@pytest.mark.parametrize(
    "primary", [Primary(name="log_loss", better="lower"), Primary(name="accuracy", better="higher")]
)
def test_a_floor_is_on_the_side_of_its_metric_whatever_the_primary(primary: Primary) -> None:
    objective = Classification(target="t", labels=("a", "b"), primary=primary)
    good = {"accuracy": 0.95, "log_loss": 0.2, "calibration_error": 0.02, "brier": 0.1}
    bad = {"accuracy": 0.5, "log_loss": 0.9, "calibration_error": 0.2, "brier": 0.6}
    floors = {"accuracy": 0.9, "log_loss": 0.3, "calibration_error": 0.05, "brier": 0.2}
    assert broken_floors(Gate(floors=floors), objective, good) == []
    broken = broken_floors(Gate(floors=floors), objective, bad)
    assert [reason.partition(" ")[0] for reason in broken] == list(floors)


def test_a_floor_whose_side_the_objective_does_not_tell_is_an_error() -> None:
    class Counting(Regression):
        directions: ClassVar[Mapping[str, Better]] = {}

    objective = Counting(target="t", unit="1")
    assert broken_floors(Gate(floors={"rmse": 2.0}), objective, {"rmse": 1.0}) == []
    with pytest.raises(ValueError, match=r"Counting\.directions does not say .* 'mae'"):
        broken_floors(Gate(floors={"mae": 2.0}), objective, {"rmse": 1.0, "mae": 1.0})
