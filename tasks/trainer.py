"""The one trainer: every family, every objective; runs in a process with a fixed numeric profile.

It binds a job to the loop of tasks.loop, which repeats and resumes exactly, and stores the weights.
"""

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from models.data import Tensors
from models.layers import Loss, Served, balanced, training_loss
from models.objectives import Classification
from models.padding import computed
from models.signature import Signature
from models.spec import Family, Training
from tasks.batches import Batches, Source, Stored, in_order, settled
from tasks.dataset import manifest as manifest_of
from tasks.determinism import deterministic
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit
from tasks.jobs import TrainJob
from tasks.loop import Judge, optimize
from tasks.optimization import initialise
from tasks.ranks import Ranks
from tasks.refs import HISTORY_FILE, WEIGHTS_FILE, Dataset, Weights
from tasks.store import content_key, store

EVALUATION_BATCH = 1024
# Megabytes in a unit of `training.window_mb`.
WINDOW_UNIT = 1.0


def fit(job: TrainJob, emit: Emit) -> Weights:
    """Train from scratch, or from the last checkpoint, to the end; raises TrainingError."""
    training, signature = job.training, job.dataset.signature
    deterministic(training.threads)
    device = torch.device("cuda" if training.device == "cuda" else "cpu")
    ranks = Ranks.joined(training)
    megabytes = training.window_mb * WINDOW_UNIT
    source = settled(Stored(job.dataset, "train"), megabytes)
    validation = settled(Stored(job.dataset, "validation"), megabytes)
    batches = Batches(
        source, training.batch_size, training.seed,
        megabytes=megabytes, parts=training.accumulate, device=device,
        rank=ranks.rank, ranks=ranks.world,
    )  # fmt: skip
    torch.manual_seed(training.seed)
    network = job.model.build(signature.features, signature.objective.width)
    initialise(network, training)
    network.to(device)
    loss = loss_function(job.dataset, training)
    served = Served(network, signature.objective)
    checkpoint = f"checkpoints/{job.checkpoint}"
    trained = optimize(
        network,
        lambda output, target, _: loss(output, target),
        training,
        batches,
        judge=Judge(lambda: measure(served, validation, signature), signature.objective.primary),
        checkpoint=checkpoint,
        emit=emit,
        ranks=ranks,
    )
    ranks.leave()
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    manifest = store().put_folder(
        {
            WEIGHTS_FILE: safetensors.torch.save(weights),
            HISTORY_FILE: json.dumps(trained.history, sort_keys=True).encode(),
        }
    )
    # Its weights are stored: the place is worthless.
    store().delete(checkpoint)
    return Weights(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        fingerprint=fingerprint(job.model, signature, training.device),
        observed={
            "samples_per_second": trained.samples_per_second,
            # Of this process, from its start: of a resumed run that is the last part.
            "cpu_seconds": round(time.process_time(), 1),
        },
        manifest=manifest,
        parameters=sum(p.numel() for p in network.parameters()),
    )


def loss_function(dataset: Dataset, training: Training) -> Loss:
    """The training loss of the line's objective; raises TypeError where the settings do not fit."""
    objective = dataset.signature.objective
    weights = None
    if training.class_weights == "balanced":
        if not isinstance(objective, Classification):
            raise TypeError(f"training.class_weights: a {type(objective).__name__} has no classes")
        weights = balanced(objective, class_counts(dataset))
    return training_loss(objective, training.label_smoothing, weights, training.loss)


def class_counts(dataset: Dataset) -> Counter[str]:
    """Training rows of every class, as cleaning counted them."""
    found = manifest_of(dataset)
    counts: Counter[str] = Counter()
    for partition in found.partitions:
        for label, summary in partition.targets.items():
            if found.splits[label] == "train":
                counts.update(summary)
    return counts


def measure(served: Served, source: Source, signature: Signature) -> dict[str, float]:
    """The metrics of a network on a source, read a batch at a time."""
    served.eval()
    names = [spec.name for spec in signature.features.inputs]
    parts: list[dict[str, NDArray[Any]]] = []
    for inputs, target in in_order(source, signature.objective.at_once(EVALUATION_BATCH)):
        parts.append(signature.objective.losses(predict(served, names, inputs), target))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {n: float(v) for n, v in signature.objective.metrics(joined).items()}


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

    def compute(rows: Tensors) -> NDArray[Any]:
        tensors = (torch.from_numpy(rows[name]).to(device) for name in names)
        found: NDArray[Any] = served(*tensors).float().cpu().numpy()
        return found

    with torch.inference_mode():
        return computed(compute, inputs, EVALUATION_BATCH)
