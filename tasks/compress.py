"""Compress a trained network: build every candidate, measure each, keep the best in the budget.

A candidate's bytes are a function of the recipe. Quality is measured on the validation rows, so
the test rows stay unseen until the gate. The smallest candidate wins whose quality loss and size
are inside the budget. CPU time is measured and left to the gate: a choice that followed a stopwatch
would not repeat. A form that cannot be made or that collapses is reported and never chosen; one
that was measured is found again after a crash, and under another budget.
"""

from typing import Any, NamedTuple

import safetensors.numpy
from numpy.typing import NDArray

from models.data import Tensors
from models.digests import Digest, bytes_digest, canonical_json, json_digest
from models.objectives import Objective
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.spec import Budget, Family
from tasks.dataset import tensors
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit, Profile, isolated
from tasks.jobs import CompressJob
from tasks.refs import Artifact, Candidate, Dataset, Weights
from tasks.stage import current_identity, scratch, stage
from tasks.store import MissingError, content_key, store

SAMPLE_ROWS = 4
CALIBRATION_ROWS = 512
UNCOMPRESSED = "fp32"
# A form that loses half of the metric on the first rows is measured no further.
PROBE_ROWS, COLLAPSE = 256, 0.5


class CompressionError(ValueError):
    """The network cannot be exported or measured."""


@stage("compress")
def compress(
    model: Family, budget: Budget, dataset: Dataset, weights: Weights, profile: Profile,
    threads: int,
) -> Artifact:  # fmt: skip
    """The served form of the network: the best candidate within the budget, ready to load."""
    job = CompressJob(
        model=model, budget=budget, dataset=dataset, weights=weights, threads=threads,
        cache=_cache(),
    )  # fmt: skip
    return isolated(
        "tasks.compress:search", job, Artifact, stage="compress", profile=profile, threads=threads
    )


def _cache() -> Digest | None:
    """By all that the stage is a function of but the budget: another budget, the same forms."""
    identity = current_identity()
    if identity is None:
        return None
    arguments = {n: v for n, v in identity["arguments"].items() if n != "budget"}
    return scratch(json_digest({**identity, "arguments": arguments}))


class Measuring(NamedTuple):
    """What every candidate is measured with: the validation rows, and the plain form's metrics."""

    objective: Objective
    rows: Tensors
    target: NDArray[Any]
    plain: dict[str, dict[str, float]]
    """By stage of the measurement, `probe` or `whole`."""

    def of(self, content: bytes, name: str) -> Candidate:
        """Size and quality of ONNX bytes; raises what ONNX Runtime says to a broken model."""
        from tasks.inference import predict, session

        model, primary = session(content), self.objective.primary
        measured: dict[str, float] = {}
        loss = 0.0
        for part, count in (("probe", PROBE_ROWS), ("whole", len(self.target))):
            rows = {n: t[:count] for n, t in self.rows.items()}
            measured = self.objective.measure(predict(model, rows), self.target[:count])
            reference = self.plain.setdefault(part, measured)
            loss = primary.loss(measured[primary.name], reference[primary.name])
            if not loss <= COLLAPSE:
                break
        return Candidate(
            name=name,
            size=len(content),
            blake3=bytes_digest(content),
            metrics=measured,
            loss=loss,
            collapsed=not loss <= COLLAPSE,
        )


def search(job: CompressJob, emit: Emit) -> Artifact:
    """In the isolated process: build, measure and choose; raises CompressionError."""
    from tasks import candidates, plots
    from tasks.determinism import deterministic
    from tasks.inference import cpu_microseconds, predict, session
    from tasks.trainer import restore

    deterministic(job.threads)
    signature = job.dataset.signature
    objective = signature.objective
    rows, target = tensors(job.dataset, "validation")
    if not len(target):
        raise CompressionError("no validation row is there to measure candidates on")
    train_rows, _ = tensors(job.dataset, "train")
    calibration = {name: t[:CALIBRATION_ROWS] for name, t in train_rows.items()}
    served = restore(job.model, job.dataset, job.weights)
    plain = candidates.export(served, signature, calibration)
    measuring = Measuring(objective, rows, target, {})
    models = {UNCOMPRESSED: plain}
    measured = {UNCOMPRESSED: measuring.of(plain, UNCOMPRESSED)}
    failed: dict[str, str] = {}
    for name in job.budget.candidates:
        found = _remembered(job.cache, name)
        if found is None:
            try:
                content = candidates.form(name, plain, calibration)
                found = measuring.of(content, name), content
            except Exception as error:
                # Whatever a quantizer stumbles over, the other forms are still good.
                failed[name] = f"{type(error).__name__}: {error}"
                emit({"candidate": name, "failed": failed[name]})
                continue
            _remember(job.cache, *found)
        measured[name], models[name] = found
        emit({"candidate": name, "size": measured[name].size, "loss": measured[name].loss})
    # As the model server runs it, whatever that does to the last bits.
    fast = {name: session(model, portable=False) for name, model in models.items()}
    cost = cpu_microseconds(fast, rows)
    chosen = choose(job.budget, measured)
    emit({"candidate": chosen, "size": measured[chosen].size, "loss": measured[chosen].loss})
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
    drawn = plots.pareto(tuple(measured.values()), chosen, objective.primary.name, cost)
    return Artifact(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        fingerprint=fingerprint(job.model, signature),
        observed={
            "cpu_microseconds": cost,
            "plots": {"compression": store().put_content(drawn)},
        },
        manifest=manifest,
        chosen=chosen,
        candidates=tuple(measured.values()),
        within_budget=_fits(job.budget, measured[chosen]),
        failed=failed,
    )


def _remembered(cache: Digest | None, name: str) -> tuple[Candidate, bytes] | None:
    """The candidate as an interrupted search, or one with another budget, left it."""
    if cache is None:
        return None
    try:
        record = store().get(f"candidates/{cache}/{name}").content
        found = Candidate.model_validate_json(record)
        return found, store().get_content(found.blake3)
    except MissingError:
        return None


def _remember(cache: Digest | None, found: Candidate, content: bytes) -> None:
    if cache is not None:
        store().put_content(content)
        store().put(f"candidates/{cache}/{found.name}", found.model_dump_json().encode())


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
    return small and not candidate.collapsed and candidate.loss <= budget.quality_loss
