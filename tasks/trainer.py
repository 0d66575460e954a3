"""The one trainer: every family, every objective; runs in a process with a fixed numeric profile.

Repeats exactly: every random number is a function of the seed, the epoch and the step, never of a
generator's history, so a checkpoint is weights, optimizer state and a position. After kill -9 the
next run continues from the last checkpoint and ends with the same bits.
"""

import json
import math
import time
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data import Tensors
from models.layers import Loss, Served, training_loss
from models.spec import Family, Schedule, Training
from tasks.checkpoint import Checkpoint
from tasks.dataset import tensors
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit
from tasks.jobs import TrainJob
from tasks.refs import Dataset, Weights
from tasks.store import content_key, store

WEIGHTS_FILE = "weights.safetensors"
HISTORY_FILE = "history.json"
EVALUATION_BATCH = 1024


class TrainingError(ValueError):
    """Training cannot go on; the message says at which step and what to change."""


def fit(job: TrainJob, emit: Emit) -> Weights:
    """Train from scratch, or from the last checkpoint, to the end; raises TrainingError."""
    training, signature = job.training, job.dataset.signature
    deterministic(training.threads)
    device = torch.device("cuda" if training.device == "cuda" else "cpu")
    inputs, targets = _on_device(*tensors(job.dataset, "train"), device)
    validation, validation_targets = tensors(job.dataset, "validation")
    torch.manual_seed(training.seed)
    network = job.model.build(signature.features, signature.objective.width).to(device)
    optimizer = _optimizer(network, training)
    loss_of = training_loss(signature.objective, training.label_smoothing)
    names = [spec.name for spec in signature.features.inputs]
    count = len(targets)
    batch = min(training.batch_size, count)
    # A last, shorter batch would weigh its rows more than others.
    steps = count // batch
    place = Checkpoint(f"checkpoints/{job.checkpoint}", network, optimizer)
    epoch, first, total, history = place.resume()
    total = total.to(device)
    start, seen = time.perf_counter(), 0
    while epoch < training.epochs:
        network.train()
        order = torch.randperm(count, generator=_generator(training.seed, epoch, "order"))
        for step in range(first, steps):
            chosen = order[step * batch : (step + 1) * batch].to(device)
            rows = {name: inputs[name].index_select(0, chosen) for name in names}
            total += _step(
                network, optimizer, loss_of, training, rows, targets.index_select(0, chosen),
                (epoch, step, steps),
            )  # fmt: skip
            seen += batch
            if place.due():
                place.keep(epoch, step + 1, total, history)
        mean_loss = float(total) / steps
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"the loss is {mean_loss} in epoch {epoch + 1}: lower the learning rate, set"
                " training.clip, or look for extreme values in the data"
            )
        served = Served(network, signature.objective).eval()
        predicted = predict(served, names, validation)
        metrics = signature.objective.measure(predicted, validation_targets)
        epoch, first, total = epoch + 1, 0, torch.zeros_like(total)
        history.append({"epoch": epoch, "loss": mean_loss, **metrics})
        place.keep(epoch, 0, total, history)
        speed = round(seen / (time.perf_counter() - start))
        emit({**history[-1], "epochs": training.epochs, "samples_per_second": speed})
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    manifest = store().put_folder(
        {
            WEIGHTS_FILE: safetensors.torch.save(weights),
            HISTORY_FILE: json.dumps(history, sort_keys=True).encode(),
        }
    )
    place.forget()
    return Weights(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        fingerprint=fingerprint(job.model, signature, training.device),
        observed={"samples_per_second": round(seen / max(time.perf_counter() - start, 1e-9))},
        manifest=manifest,
        parameters=sum(p.numel() for p in network.parameters()),
    )


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    training: Training,
    rows: dict[str, Tensor],
    target: Tensor,
    position: tuple[int, int, int],
) -> Tensor:
    """One step of the optimizer; the loss, float64 []."""
    epoch, step, steps = position
    torch.manual_seed(_seed(training.seed, epoch, str(step)))
    if training.augmentation is not None:
        generator = _generator(training.seed, epoch, f"augment {step}")
        rows = training.augmentation.apply(rows, generator)
    share = rate(training.schedule, epoch * steps + step, training.epochs * steps)
    for group in optimizer.param_groups:
        group["lr"] = training.optimizer.lr * share
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=target.is_cuda):
        loss = loss_of(network(*rows.values()), target)
    loss.backward()
    if training.clip:
        nn.utils.clip_grad_norm_(network.parameters(), training.clip)
    optimizer.step()
    return loss.detach().double()


def deterministic(threads: int) -> None:
    """Only algorithms that repeat exactly, with this many compute threads."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)


def restore(model: Family, dataset: Dataset, weights: Weights) -> Served:
    """The trained network with its served output, ready for inference on the CPU."""
    signature = dataset.signature
    network = model.build(signature.features, signature.objective.width)
    content = store().get_file(weights.manifest, WEIGHTS_FILE)
    network.load_state_dict(safetensors.torch.load(content))
    return Served(network, signature.objective).eval()


def predict(served: nn.Module, names: list[str], inputs: Tensors) -> NDArray[Any]:
    """The served output for all rows, in batches."""
    device = next(served.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(inputs[names[0]]), EVALUATION_BATCH):
            rows = [torch.from_numpy(inputs[n][start : start + EVALUATION_BATCH]) for n in names]
            parts.append(served(*(r.to(device) for r in rows)).float().cpu().numpy())
    return np.concatenate(parts)


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak."""
    warmup = schedule.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, steps - warmup)
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            return schedule.drop ** int(share * 3)
        case "cosine" | "onecycle":
            return (1 + math.cos(math.pi * share)) / 2


def _seed(seed: int, epoch: int, use: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{use}".encode()) >> 1


def _generator(seed: int, epoch: int, use: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, epoch, use))


def _on_device(
    inputs: Tensors, targets: NDArray[Any], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    def move(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    return {name: move(array) for name, array in inputs.items()}, move(targets)


def _optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    settings = training.optimizer
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                network.parameters(),
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        case "adam":
            kind: type[torch.optim.Adam] = torch.optim.Adam
        case "adamw":
            kind = torch.optim.AdamW
    # Of Adam's implementations only the fused one gives the same bits on every CPU.
    return kind(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
