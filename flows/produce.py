"""Produce a model version: from what is in the bucket to what answers requests.

modelmint run digits
"""

from prefect import flow
from pydantic import JsonValue

from models import catalog
from models.open import Frozen
from models.spec import Budget, Gate, Training
from tasks import cluster
from tasks.arrivals import take
from tasks.clean import clean
from tasks.compress import compress
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.gate import decide
from tasks.production import reconsidered
from tasks.progress import listening
from tasks.progress_artifact import progress_artifact
from tasks.promotion import champion_for
from tasks.publish import EpochLog, show
from tasks.recipe import recipe
from tasks.recorded import with_dataset
from tasks.refs import Artifact, Dataset, Endpoint, Report, Verdict, Version
from tasks.register import register
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.stage import StageRun, recording
from tasks.train import train
from tasks.turn import turn

STAGES = 8
"""Of a run, from `snapshot` to `deploy`."""


class Production(Frozen):
    """What a run produced."""

    version: Version
    dataset: Dataset
    report: Report
    artifact: Artifact
    verdict: Verdict
    endpoint: Endpoint
    stages: tuple[StageRun, ...]


@flow(name="produce", flow_run_name="produce {line}", persist_result=False)
def produce(
    line: str,
    model: dict[str, JsonValue] | None = None,
    training: Training | None = None,
    gate: Gate | None = None,
    budget: Budget | None = None,
) -> Production:
    """Turn what is in the bucket into a gated, compressed, registered and served version.

    Runs of one line take turns, whatever started them.

    Args:
        line: Name of the model line.
        model: Fields of the line's architecture to change, for instance {"size": "small"}.
        training: How to train, instead of as the line says.
        gate: What to demand, instead of what the line demands.
        budget: What compression may cost, instead of what the line allows.
    """
    wanted = catalog.find(line).changed(model, training, gate, budget)
    with (
        turn(line),
        recording() as runs,
        listening(EpochLog(line)),
        progress_artifact(f"{line}-progress", STAGES),
    ):
        spec = wanted.on(cluster.device())
        profile, threads = spec.training.profile, spec.training.threads
        prefix = raw_prefix(spec.data)
        listing = list_objects(spec.data)
        take(line, listing)
        snapshot = take_snapshot(prefix, listing)
        dataset = clean(spec.data, spec.objective, prefix, snapshot)
        weights = train(spec.model, spec.training, dataset)
        confidence = spec.gate.confidence
        report = evaluate(spec.model, dataset, weights, confidence, profile, threads)
        artifact = compress(spec.model, spec.training, spec.budget, dataset, weights)
        champion = with_dataset(spec, champion_for(line, artifact.digest))
        verdict = decide(
            spec.gate, spec.budget, dataset, artifact, report, champion, profile, threads
        )
        recorded = recipe(spec, snapshot, artifact, runs)
        verdict = reconsidered(line, recorded.digest, verdict)
        version = register(recorded, prefix, snapshot, artifact, report, verdict)
        endpoint = deploy(version, artifact, verdict)
        show(version, dataset, report, artifact, verdict)
    return Production(
        version=version,
        dataset=dataset,
        report=report,
        artifact=artifact,
        verdict=verdict,
        endpoint=endpoint,
        stages=tuple(runs),
    )
