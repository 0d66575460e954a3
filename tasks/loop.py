"""The training loop: a network, a loss, settings and batches; the trainer and compression share it.

Every random number is a function of the seed, the epoch and the step, never of a generator's
history, so a checkpoint is weights, optimizer state and a position. After kill -9 the next run
continues from the last checkpoint and ends with the same bits.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.objectives import Primary
from models.spec import Training
from tasks.batches import Batches, Rows
from tasks.checkpoint import Checkpoint, Place
from tasks.isolated import Emit
from tasks.optimization import add_l1, follow, generator, optimizer, random_seed, rate
from tasks.ranks import Ranks

LossFunction = Callable[[Tensor, Tensor, Rows], Tensor]
"""Mean loss [] of a batch from the network's output, the target, and the inputs it was given."""

# On a GPU every look at a loss waits for all that was queued.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 32}


class TrainingError(ValueError):
    """Training cannot go on; the message says at which step and what to change."""


class Judge(NamedTuple):
    """How the network is judged after every epoch: its metrics, and the one that counts."""

    measure: Callable[[], dict[str, float]]
    primary: Primary


class Trained(NamedTuple):
    """What the loop did: the figures of every epoch, and samples a second."""

    history: list[dict[str, Any]]
    samples_per_second: int


def optimize(
    network: nn.Module,
    loss_of: LossFunction,
    training: Training,
    batches: Batches,
    *,
    judge: Judge | None = None,
    checkpoint: str | None = None,
    begins: Callable[[int], None] = lambda _: None,
    emit: Emit = lambda _: None,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Trained:
    """Train the network in place, from scratch or from the checkpoint of that key.

    All ranks end with the same network; the first of them keeps the checkpoint and emits.
    `begins` is told the number of every epoch before its first step, and ends all by raising. With
    `training.patience` the network ends with the weights of its best epoch. The checkpoint
    stays until its owner forgets it. Raises TrainingError; ValueError for patience without a judge.
    """
    if training.patience and judge is None:
        raise ValueError("training.patience needs a judge: there is nothing to stop by")
    descent = optimizer(network, training)
    place = Checkpoint(checkpoint, network, descent) if checkpoint else None
    at = place.resume() if place else Place.start()
    # The first rank may delete the place as soon as it is done.
    ranks.wait()
    epoch, first, history, best = at.epoch, at.step, at.history, at.best
    total = at.total.to(batches.device)
    losses = _Losses(STEPS_BETWEEN_LOOKS.get(batches.device.type, 1))
    start, seen = time.perf_counter(), 0
    while epoch < training.epochs and not _exhausted(history, training, judge):
        if not first:
            begins(epoch)
        network.train()
        step = first
        for rows, target in batches.epoch(epoch, first):
            position = epoch, step, batches
            loss = _step(network, descent, loss_of, training, rows, target, position, ranks)
            total += loss
            step, seen = step + 1, seen + batches.size
            losses.add(loss, epoch, step)
            if place and ranks.first and place.due():
                losses.look()
                place.keep(Place(epoch, step, total, history, best))
        losses.look()
        ranks.agree(network)
        metrics = judge.measure() if judge else {}
        history.append({"epoch": epoch + 1, "loss": float(total) / batches.steps, **metrics})
        if training.patience and _best(history, judge) == len(history) - 1:
            best = {n: v.detach().cpu().clone() for n, v in network.state_dict().items()}
        epoch, first, total = epoch + 1, 0, torch.zeros_like(total)
        if place and ranks.first:
            place.keep(Place(epoch, 0, total, history, best))
        speed = round(seen / (time.perf_counter() - start))
        if ranks.first:
            emit({**history[-1], "epochs": training.epochs, "samples_per_second": speed})
    if best:
        network.load_state_dict(best)
    return Trained(history, round(seen / max(time.perf_counter() - start, 1e-9)))


def _step(
    network: nn.Module,
    descent: torch.optim.Optimizer,
    loss_of: LossFunction,
    training: Training,
    rows: Rows,
    target: Tensor,
    position: tuple[int, int, Batches],
    ranks: Ranks,
) -> Tensor:
    """One step of the optimizer; the loss over all ranks, float64 []."""
    epoch, step, batches = position
    torch.manual_seed(random_seed(training.seed, epoch, ranks.use(str(step))))
    if training.augmentation is not None:
        random = generator(training.seed, epoch, ranks.use(f"augment {step}"))
        rows = training.augmentation.apply(rows, random)
    share = rate(training.schedule, epoch * batches.steps + step, training.epochs * batches.steps)
    follow(descent, training, share)
    descent.zero_grad(set_to_none=True)
    parts, total = training.accumulate, torch.zeros((), dtype=torch.float64, device=target.device)
    size = len(target) // parts
    for start in range(0, len(target), size):
        part = {name: tensor[start : start + size] for name, tensor in rows.items()}
        with torch.autocast(target.device.type, torch.bfloat16, enabled=_halved(training, target)):
            loss = loss_of(network(*part.values()), target[start : start + size], part)
        (loss / parts if parts > 1 else loss).backward()
        total += loss.detach().double() / parts
    total = ranks.averaged(network, total)
    if training.l1:
        add_l1(list(network.parameters()), training.l1)
    if training.clip:
        nn.utils.clip_grad_norm_(network.parameters(), training.clip)
    descent.step()
    return total


def _halved(training: Training, target: Tensor) -> bool:
    return training.precision == "bfloat16" or (training.precision == "auto" and target.is_cuda)


def _best(history: list[dict[str, Any]], judge: Judge | None) -> int:
    """Index of the first epoch none is better than."""
    assert judge is not None
    sign = -1 if judge.primary.better == "higher" else 1
    values = [sign * entry[judge.primary.name] for entry in history]
    return min(range(len(values)), key=lambda i: math.inf if math.isnan(values[i]) else values[i])


def _exhausted(history: list[dict[str, Any]], training: Training, judge: Judge | None) -> bool:
    """Whether so many epochs brought nothing better that it is time to stop."""
    if not training.patience or not history:
        return False
    return len(history) - 1 - _best(history, judge) >= training.patience


class _Losses:
    """Looks at losses, a few at a time, and stops at the first that is no number."""

    def __init__(self, between: int) -> None:
        self.between = between
        self.waiting: list[tuple[Tensor, int, int]] = []

    def add(self, loss: Tensor, epoch: int, step: int) -> None:
        self.waiting.append((loss, epoch, step))
        if len(self.waiting) >= self.between:
            self.look()

    def look(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        values = torch.stack([loss for loss, _, _ in waiting]).tolist()
        for value, (_, epoch, step) in zip(values, waiting, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {step} of epoch {epoch + 1}: lower the learning"
                    " rate, set training.clip, or look for extreme values in the data"
                )
