import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import cnn, mlp
from models.augmentation import Affine
from models.digests import json_digest
from models.spec import Family, Optimizer, Schedule, Training
from tasks import checkpoint, trainer
from tasks.batches import Stored
from tasks.dataset import tensors
from tasks.jobs import TrainJob
from tasks.loop import TrainingError
from tasks.optimization import follow, initialise, optimizer, rate
from tasks.refs import Dataset
from tasks.store import store
from tasks.trainer import fit, predict, restore
from tests.tasks.conftest import Made
from tests.tasks.killing import (
    assert_a_killed_training_goes_on_to_the_same_bits,
)

MLP = mlp.Spec(size="tiny", dropout=0.1)
CNN = cnn.Spec(size="tiny")
TRAINING = Training(
    epochs=4, batch_size=16, optimizer=Optimizer(lr=0.02), clip=1.0, seed=3, device="cpu"
)
PATIENT = TRAINING.model_copy(
    update={"epochs": 40, "patience": 1, "schedule": Schedule(name="constant"), "accumulate": 4}
)
AUGMENTED = TRAINING.model_copy(update={"augmentation": Affine(degrees=15, scale=0.1, shift=1)})


def job(model: Family, training: Training, dataset: Dataset, *name: str) -> TrainJob:
    return TrainJob(
        model=model, training=training, dataset=dataset, checkpoint=json_digest(["test", *name])
    )


@pytest.mark.parametrize(
    ("kind", "model", "training"),
    [("trips", MLP, TRAINING), ("shapes", CNN, AUGMENTED), ("trips", MLP, PATIENT)],
)
def test_two_processes_and_a_killed_one_that_goes_on_end_with_the_same_bits(
    made: Made, kind: str, model: Family, training: Training
) -> None:
    dataset: Dataset = getattr(made, kind)
    assert_a_killed_training_goes_on_to_the_same_bits(job(model, training, dataset, kind))


def test_what_is_asked_for_decides_the_weights(made: Made) -> None:
    def weights(name: str, **changes: Any) -> str:
        changed = TRAINING.model_copy(update={"epochs": 1, **changes})
        return fit(job(MLP, changed, made.trips, name), lambda _: None).digest

    found = [
        weights("a"),
        weights("seed", seed=4),
        weights("batch", batch_size=8),
        weights("sgd", optimizer=Optimizer(name="sgd", lr=0.02)),
        weights("adam", optimizer=Optimizer(name="adam", lr=0.02)),
        weights("rate", schedule=Schedule(name="constant")),
        weights("clip", clip=0.01),
        weights("l1", l1=0.001),
        weights("huber", loss="huber"),
        weights("absolute", loss="l1"),
        weights("xavier", initialisation="xavier"),
        weights("he", initialisation="he"),
        weights("half", precision="bfloat16"),
        weights("nesterov", optimizer=Optimizer(name="sgd", lr=0.02, nesterov=True)),
        weights("betas", optimizer=Optimizer(lr=0.02, beta1=0.5)),
        weights("decay", optimizer=Optimizer(lr=0.02, weight_decay=0.5)),
        weights("momentum", schedule=Schedule(cycle_momentum=True)),
        weights("foreach", optimizer=Optimizer(lr=0.02, implementation="foreach")),
    ]
    assert len(set(found)) == len(found)
    assert weights("b") == found[0]
    assert weights("half again", precision="bfloat16") in found
    assert weights("loop", optimizer=Optimizer(lr=0.02, implementation="forloop")) != found[0]


def test_what_smooths_labels_and_weighs_classes_decides_the_weights(made: Made) -> None:
    def weights(name: str, **changes: Any) -> str:
        changed = TRAINING.model_copy(update={"epochs": 1, **changes})
        return fit(job(CNN, changed, made.shapes, name), lambda _: None).digest

    found = [
        weights("labels"),
        weights("smoothed", label_smoothing=0.1),
        weights("smoother", label_smoothing=0.2),
        weights("weighed", class_weights="balanced"),
    ]
    assert len(set(found)) == len(found)
    assert weights("labels again") == found[0]


def test_patience_stops_early_and_keeps_the_best_epoch(made: Made) -> None:
    told: list[dict[str, Any]] = []
    weights = fit(job(MLP, PATIENT, made.trips, "patient"), told.append)
    values = [detail["rmse"] for detail in told]
    best = min(range(len(values)), key=values.__getitem__)
    assert len(told) == best + 2 < PATIENT.epochs
    signature = made.trips.signature
    served = restore(MLP, made.trips, weights)
    found = trainer.measure(served, Stored(made.trips, "validation"), signature)
    assert found["rmse"] == values[best] < values[-1]


def test_a_batch_computed_in_parts_is_the_same_step(made: Made) -> None:
    plain = mlp.Spec(size="tiny")

    def parameters(parts: int) -> Any:
        training = TRAINING.model_copy(update={"epochs": 2, "accumulate": parts})
        weights = fit(job(plain, training, made.trips, f"parts {parts}"), lambda _: None)
        return torch.cat([p.flatten() for p in restore(plain, made.trips, weights).parameters()])

    torch.testing.assert_close(parameters(1), parameters(4), rtol=1e-3, atol=1e-4)


def test_balanced_classes_need_classes_and_count_the_training_rows(made: Made) -> None:
    balanced = TRAINING.model_copy(update={"epochs": 1, "class_weights": "balanced"})
    counts = trainer.class_counts(made.shapes)
    assert sum(counts.values()) == made.shapes.rows["train"]
    assert fit(job(CNN, balanced, made.shapes, "balanced"), lambda _: None).parameters
    with pytest.raises(TypeError, match="a Regression has no classes"):
        fit(job(MLP, balanced, made.trips, "balanced trips"), lambda _: None)


def test_a_data_set_larger_than_its_window_trains_and_resumes_exactly(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "WINDOW_UNIT", 0.001)
    small = TRAINING.model_copy(update={"window_mb": 2})
    whole = fit(job(MLP, small, made.trips, "streamed"), lambda _: None)
    held = fit(job(MLP, small.model_copy(update={"window_mb": 64}), made.trips, "held"), print)
    assert whole.digest != held.digest, "one window held all rows"
    cut = job(MLP, small, made.trips, "streamed, cut")
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    kept = checkpoint.Checkpoint.keep

    def keep_and_fail(self: checkpoint.Checkpoint, place: checkpoint.Place) -> None:
        kept(self, place)
        if (place.epoch, place.step) == (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "keep", keep_and_fail)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, lambda _: None)
    monkeypatch.setattr(checkpoint.Checkpoint, "keep", kept)
    assert fit(cut, lambda _: None).digest == whole.digest


def test_training_learns_and_tells_how(made: Made) -> None:
    told: list[dict[str, Any]] = []
    longer = TRAINING.model_copy(update={"epochs": 30})
    weights = fit(job(MLP, longer, made.trips, "learns"), told.append)
    assert [detail["epoch"] for detail in told] == list(range(1, 31))
    objective = made.trips.signature.objective
    inputs, target = tensors(made.trips, "test")
    names = [spec.name for spec in made.trips.signature.features.inputs]
    predicted = predict(restore(MLP, made.trips, weights), names, inputs)
    constant = objective.measure(objective.constant(target, len(target))[1], target)
    assert objective.measure(predicted, target)["rmse"] < constant["rmse"] / 4
    history = json.loads(store().get_file(weights.manifest, trainer.HISTORY_FILE))
    assert history[-1]["loss"] < history[0]["loss"] / 4
    assert np.isfinite([entry["rmse"] for entry in history]).all()


def test_a_finished_training_leaves_no_checkpoint_behind(made: Made) -> None:
    before = {item.key for item in store().list("checkpoints/")}
    fit(job(MLP, TRAINING, made.trips, "finished"), lambda _: None)
    assert {item.key for item in store().list("checkpoints/")} == before


def test_more_rows_in_a_batch_than_there_are_is_all_of_them(made: Made) -> None:
    one = TRAINING.model_copy(update={"epochs": 1, "batch_size": 65_536})
    assert fit(job(MLP, one, made.trips, "one batch"), lambda _: None).parameters > 0


def test_a_loss_that_is_no_number_ends_the_training_with_advice(made: Made) -> None:
    wild = TRAINING.model_copy(
        update={"epochs": 20, "clip": 0.0, "optimizer": Optimizer(name="sgd", lr=10, momentum=0.99)}
    )
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at step \d+ of epoch \d+: lower"
    ) as e:
        fit(job(mlp.Spec(size="small"), wild, made.trips, "wild"), lambda _: None)
    assert re.search(r"training\.clip", str(e.value))


# ---- learning rate


def rates(**fields: Any) -> list[float]:
    return [rate(Schedule(**fields), step, 100) for step in range(100)]


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle", "step"])
def test_every_schedule_rises_to_its_peak_and_never_above(name: str) -> None:
    found = rates(name=name, warmup=0.2)
    assert all(0 <= value <= 1 for value in found)
    assert found[:20] == sorted(found[:20])
    assert 0 < found[0] < 0.1
    assert found[20] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle", "step"])
def test_without_warmup_a_schedule_starts_at_its_peak(name: str) -> None:
    assert rates(name=name, warmup=0)[0] == 1.0


def test_after_warmup_constant_stays_and_cosine_falls_to_nearly_nothing() -> None:
    assert set(rates(name="constant", warmup=0.1)[10:]) == {1.0}
    falling = rates(name="cosine", warmup=0.1)[10:]
    assert falling == sorted(falling, reverse=True)
    assert falling[45] == pytest.approx(0.5)
    assert falling[-1] < 0.001


def test_step_drops_at_each_third() -> None:
    found = rates(name="step", warmup=0, drop=0.5)
    assert [found[0], found[33], found[34], found[66], found[67], found[99]] == [
        1.0, 1.0, 0.5, 0.5, 0.25, 0.25,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle", "step"])
def test_a_run_of_one_step_has_a_rate(name: str) -> None:
    assert 0 < rate(Schedule(name=name, warmup=0.5), 0, 1) <= 1  # type: ignore[arg-type]


def test_onecycle_has_the_rates_of_torchs_own_policy() -> None:
    """Whose phases each take one shape for both: linear here before the peak, a cosine after it."""
    ours = rates(name="onecycle", warmup=0.3)
    for shape, phase in (("linear", slice(0, 31)), ("cos", slice(30, 100))):
        descent = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        policy = torch.optim.lr_scheduler.OneCycleLR(
            descent, 1.0, 101, pct_start=31 / 101, anneal_strategy=shape, div_factor=31,
            final_div_factor=1e12,
        )  # fmt: skip
        theirs = []
        for _ in range(100):
            theirs.append(float(policy.get_last_lr()[0]))
            descent.step()
            policy.step()
        assert ours[phase] == pytest.approx(theirs[phase], abs=1e-9)
    assert ours == rates(name="cosine", warmup=0.3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_cycle_may_take_momentum_the_other_way(name: str) -> None:
    cycle = TRAINING.model_copy(
        update={
            "optimizer": Optimizer(name=name, lr=2.0, beta2=0.99),  # type: ignore[arg-type]
            "schedule": Schedule(cycle_momentum=True, warmup=0.2),
        }
    )
    descent = optimizer(nn.Linear(1, 1), cycle)
    [group] = descent.param_groups
    found = []
    for share in rates(name="onecycle", warmup=0.2):
        follow(descent, cycle, share)
        assert group["lr"] == 2.0 * share
        found.append(group["momentum"] if name == "sgd" else group["betas"][0])
    assert found[20] == min(found) == pytest.approx(0.85)
    assert found[60] == pytest.approx(0.9)
    assert found[-1] == max(found) == pytest.approx(0.95, abs=1e-3)
    if name == "adamw":
        assert group["betas"][1] == 0.99
    follow(descent, cycle.model_copy(update={"schedule": Schedule()}), 1.0)
    assert found[-1] == (group["momentum"] if name == "sgd" else group["betas"][0])


# ---- first weights


@pytest.mark.parametrize("layer", [nn.GRU(8, 16, 2), nn.LSTM(8, 16, bidirectional=True)])
def test_recurrent_layers_start_gate_by_gate_as_is_asked(layer: nn.RNNBase) -> None:
    network = nn.Sequential(nn.Embedding(5, 8), layer)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialise(network, TRAINING)
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    for kind in ("xavier", "he"):
        initialise(network, TRAINING.model_copy(update={"initialisation": kind}))
        assert torch.equal(network[0].weight, before["0.weight"])
        for name, parameter in layer.named_parameters():
            for gate in parameter.detach().split(16):
                if name.startswith("bias"):
                    assert not gate.any()
                elif name.startswith("weight_hh"):
                    torch.testing.assert_close(gate @ gate.T, torch.eye(16))
                else:
                    # Variances 2 / (in + out) and 2 / in.
                    wanted = 2 / (sum(gate.shape) if kind == "xavier" else gate.shape[1])
                    assert float(gate.var()) == pytest.approx(wanted, rel=0.5)
        gates = layer.weight_hh_l0.detach().split(16)  # type: ignore[union-attr]
        assert not torch.equal(gates[0], gates[1])
