"""Compress a trained network: build every candidate, measure each, keep the best in the budget.

A candidate's bytes are a function of the recipe. Quality is measured on the validation rows, so
the test rows stay unseen until the gate. The smallest candidate wins whose quality loss and size
are inside the budget. CPU time is measured and left to the gate: a choice that followed a stopwatch
would not repeat.
"""

import safetensors.numpy

from models.digests import bytes_digest, canonical_json
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.spec import Budget, Family
from tasks.dataset import tensors
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import CompressJob
from tasks.refs import Artifact, Candidate, Dataset, Weights
from tasks.stage import stage
from tasks.store import content_key, store

SAMPLE_ROWS = 4
CALIBRATION_ROWS = 512
UNCOMPRESSED = "fp32"


class CompressionError(ValueError):
    """The network cannot be exported or measured."""


@stage("compress")
def compress(
    model: Family, budget: Budget, dataset: Dataset, weights: Weights, profile: Profile,
    threads: int,
) -> Artifact:  # fmt: skip
    """The served form of the network: the best candidate within the budget, ready to load."""
    job = CompressJob(model=model, budget=budget, dataset=dataset, weights=weights, threads=threads)
    return isolated(
        "tasks.compress:search", job, Artifact, stage="compress", profile=profile, threads=threads
    )


def search(job: CompressJob, emit: Emit) -> Artifact:
    """In the isolated process: build, measure and choose; raises CompressionError."""
    from tasks import candidates
    from tasks.inference import cpu_microseconds, predict, session
    from tasks.trainer import deterministic, restore

    deterministic(job.threads)
    signature = job.dataset.signature
    objective = signature.objective
    rows, target = tensors(job.dataset, "validation")
    if not len(target):
        raise CompressionError("no validation row is there to measure candidates on")
    train_rows, _ = tensors(job.dataset, "train")
    calibration = {name: t[:CALIBRATION_ROWS] for name, t in train_rows.items()}
    served = restore(job.model, job.dataset, job.weights)
    models: dict[str, bytes] = {}
    measured: dict[str, Candidate] = {}
    reference = 0.0
    for name, content in candidates.build(served, signature, calibration):
        metrics = objective.measure(predict(session(content), rows), target)
        if name == UNCOMPRESSED:
            reference = metrics[objective.primary.name]
        loss = objective.primary.loss(metrics[objective.primary.name], reference)
        models[name] = content
        measured[name] = Candidate(
            name=name, size=len(content), blake3=bytes_digest(content), metrics=metrics, loss=loss
        )
        emit({"candidate": name, "size": len(content), "loss": loss})
    cost = cpu_microseconds({n: session(m) for n, m in models.items()}, rows)
    chosen = choose(job.budget, measured)
    sample = {name: t[:SAMPLE_ROWS] for name, t in rows.items()}
    sample[objective.output.name] = predict(session(models[UNCOMPRESSED]), sample)
    manifest = store().put_folder(
        {
            MODEL_FILE: models[chosen],
            SIGNATURE_FILE: canonical_json(signature.model_dump(mode="json")),
            SAMPLE_FILE: safetensors.numpy.save(sample),
        }
    )
    for content in models.values():
        store().put_content(content)
    return Artifact(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        fingerprint=fingerprint(job.model, signature),
        observed={"cpu_microseconds": cost},
        manifest=manifest,
        chosen=chosen,
        candidates=tuple(measured.values()),
        within_budget=_fits(job.budget, measured[chosen]),
    )


def choose(budget: Budget, measured: dict[str, Candidate]) -> str:
    """The smallest candidate within the budget, or the uncompressed one when there is none."""
    fitting = [
        (candidate.size, name)
        for name, candidate in measured.items()
        if name not in budget.exclude and _fits(budget, candidate)
    ]
    return min(fitting)[1] if fitting else UNCOMPRESSED


def _fits(budget: Budget, candidate: Candidate) -> bool:
    small = budget.size_mb is None or candidate.size <= budget.size_mb * 1e6
    return small and candidate.loss <= budget.quality_loss
