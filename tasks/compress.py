"""Compress a trained network: build every candidate, measure each, keep the best in the budget.

A candidate's bytes are a function of the recipe, those of one that was trained for it included.
Quality is measured on the validation rows, so the test rows stay unseen until the gate. The
smallest candidate wins whose quality loss and size are inside the budget. CPU time and memory are
measured and left to the gate and to people: a choice that followed a stopwatch would not repeat. A
form that cannot be made or that collapses is reported and never chosen; one that was measured is
found again after a crash, and under another budget. A network that ONNX Runtime does not run is
served as a program of torch, and why is reported as the failure of `onnx`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from models import samples
from models.digests import Digest, canonical_json, json_digest
from models.forms import UNCOMPRESSED, FormError, parts
from models.padding import trimmed
from models.program import is_program
from models.signature import MODEL_FILE, PROGRAM_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.spec import Budget, Family, Training
from tasks.fingerprint import fingerprint
from tasks.isolated import Emit, isolated
from tasks.jobs import CompressJob
from tasks.refs import Artifact, Candidate, Dataset, Weights
from tasks.stage import current_identity, scratch, stage
from tasks.store import content_key, store

if TYPE_CHECKING:
    from tasks.forms import Forms

SAMPLE_ROWS = 4
# Least bytes a weight takes, by quantizer; one for the others.
WEIGHT_BYTES = {None: 4.0, "fp16": 2.0, "int4-weights": 0.5}


@stage("compress")
def compress(
    model: Family, training: Training, budget: Budget, dataset: Dataset, weights: Weights
) -> Artifact:
    """The served form of the network: the best candidate within the budget, ready to load."""
    job = CompressJob(
        model=model, training=training, budget=budget, dataset=dataset, weights=weights,
        cache=_cache(),
    )  # fmt: skip
    return isolated(
        "tasks.compress:search", job, Artifact, stage="compress", profile=training.profile,
        threads=training.threads, gpu=budget.trains and training.device == "cuda",
    )  # fmt: skip


def _cache() -> Digest | None:
    """By all that a candidate is a function of: of the budget, how networks are retrained."""
    identity = current_identity()
    if identity is None:
        return None
    arguments = dict(identity["arguments"])
    arguments["budget"] = arguments["budget"]["retraining"]
    return scratch(json_digest({**identity, "arguments": arguments}))


def search(job: CompressJob, emit: Emit) -> Artifact:
    """In the isolated process: build, measure and choose; raises ValueError without rows."""
    from tasks import plots
    from tasks.determinism import deterministic
    from tasks.forms import Forms
    from tasks.inference import cpu_microseconds, predict, session
    from tasks.trials import Trials

    deterministic(job.training.threads)
    # As it is served, a network may take a state that training does without.
    signature = job.dataset.signature.served(job.model)
    dataset = job.dataset.model_copy(update={"signature": signature})
    job = job.model_copy(update={"dataset": dataset})
    with Trials() as trials:
        forms = Forms(job, trials, emit)
        failed, skipped = _make(forms, job.budget, emit)
        listed = [name for name in (UNCOMPRESSED, *job.budget.candidates) if name in forms.made]
        models = {name: forms.made[name][1] for name in listed}
        memory = {name: forms.peak(name) for name in listed}
    measured = {name: forms.made[name][0] for name in listed}
    # As the model server runs it, whatever that does to the last bits.
    fast = {name: session(model, portable=False) for name, model in models.items()}
    cost = cpu_microseconds(fast, forms.first)
    chosen = choose(job.budget, measured)
    emit({"candidate": chosen, "size": measured[chosen].size, "loss": measured[chosen].loss})
    sample = trimmed({name: t[:SAMPLE_ROWS] for name, t in forms.first.items()})
    sample[signature.objective.output.name] = predict(session(models[UNCOMPRESSED]), sample)
    manifest = store().put_folder(
        {
            PROGRAM_FILE if is_program(models[chosen]) else MODEL_FILE: models[chosen],
            SIGNATURE_FILE: canonical_json(signature.model_dump(mode="json")),
            SAMPLE_FILE: samples.save(sample),
        }
    )
    for content in models.values():
        store().put_content(content)
    primary = signature.objective.primary
    drawn = plots.pareto(tuple(measured.values()), chosen, primary.name, cost)
    device = job.training.device if job.budget.trains else "cpu"
    return Artifact(
        digest=manifest.digest,
        stored=tuple(content_key(file.blake3) for file in manifest.files.values()),
        fingerprint=fingerprint(job.model, signature, device),
        observed={
            "cpu_microseconds": cost,
            "memory_bytes": {n: most for n, most in memory.items() if most is not None},
            "plots": {"compression": store().put_content(drawn)},
        },
        manifest=manifest,
        chosen=chosen,
        candidates=tuple(measured.values()),
        within_budget=chosen not in job.budget.exclude and _fits(job.budget, measured[chosen]),
        failed=failed,
        skipped=skipped,
    )


def _make(forms: "Forms", budget: Budget, emit: Emit) -> tuple[dict[str, str], dict[str, str]]:
    """Have all candidates made and measured; those that failed or were skipped, and why."""
    from tasks.loop import TrainingError

    failed = {"onnx": forms.without_onnx} if forms.without_onnx else {}
    skipped: dict[str, str] = {}
    for name in budget.candidates:
        try:
            reason = hopeless(forms, budget, name)
            if reason:
                skipped[name] = reason
                emit({"candidate": name, "skipped": reason})
                continue
            found, _ = forms.form(name)
        except (FormError, TrainingError) as error:
            # The other forms are still good. What else goes wrong is no fault of the form.
            failed[name] = f"{type(error).__name__}: {error}"
            emit({"candidate": name, "failed": failed[name]})
            continue
        emit({"candidate": name, "size": found.size, "loss": found.loss})
    return failed, skipped


def hopeless(forms: "Forms", budget: Budget, name: str) -> str | None:
    """Why a form need not be trained, because it could not be chosen; None when it could be.

    A network's weights alone take so much, whatever they will have learnt.
    """
    from tasks.pruning import weights

    network, quantizer = parts(name)
    if network is None or budget.exhaustive or {name, network} & forms.made.keys():
        return None
    if forms.remembered(network) is not None:
        return None
    if name in budget.exclude:
        return "excluded by budget.exclude"
    least = weights(forms.students.begun(network)) * WEIGHT_BYTES.get(quantizer, 1.0)
    if budget.size_mb is not None and least > budget.size_mb * 1e6:
        return f"it is at least {least / 1000:,.0f} kB, over budget.size_mb"
    measured = {name: found for name, (found, _) in forms.made.items()}
    best = choose(budget, measured)
    if best != UNCOMPRESSED and least >= measured[best].size:
        return f"it is at least {least / 1000:,.0f} kB, {best} is smaller and within the budget"
    return None


def choose(budget: Budget, measured: Mapping[str, Candidate]) -> str:
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
