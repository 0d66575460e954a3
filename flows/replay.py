"""Replay a version: make it again from its recipe, with no cache, and compare every digest.

modelmint replay digits 1
"""

from functools import partial

from prefect import flow

from tasks.clean import clean
from tasks.compress import compress
from tasks.evaluate import evaluate
from tasks.register import registered
from tasks.replay import (
    CannotReplayError,
    Replay,
    check_identity,
    compared,
    recorded_line,
    recorded_snapshot,
    write_back,
)
from tasks.snapshot import raw_prefix
from tasks.stage import afresh, recording
from tasks.store import MissingError
from tasks.train import train


@flow(name="replay", flow_run_name="replay {line} {version}", persist_result=False)
def replay(line: str, version: int) -> Replay:
    """Prove that a version is the output of its recipe, or name the first stage that differs.

    Args:
        line: Name of the model line.
        version: Number of the registered version.
    """
    body = registered(line, version)
    spec = recorded_line(line, body)
    prefix, snapshot = raw_prefix(spec.data), recorded_snapshot(spec, body["snapshot"])
    profile, threads = spec.training.profile, spec.training.threads
    with afresh(partial(check_identity, body)), recording() as runs:
        try:
            dataset = clean(spec.data, spec.objective, prefix, snapshot)
        except MissingError as error:
            raise CannotReplayError(f"missing raw object: {error}") from None
        weights = train(spec.model, spec.training, dataset)
        evaluate(spec.model, dataset, weights, spec.gate.confidence, profile, threads)
        compress(spec.model, spec.budget, dataset, weights, profile, threads)
    found = compared(line, version, body, runs)
    write_back(found)
    return found
