"""Orchestration: what Prefect, stage keys and cached results add to the stages themselves.

    python -m benchmarks.orchestration [--json] [--turns 3] [--lines flights,digits]

About fifteen minutes on two cores: each contestant gets a home, a bucket, a registry and running
services that nothing has used, so nothing is cached, and a fresh process; the clock starts after
its imports.

- *flow*: `flows.produce.produce`: Prefect tasks, keys, results in the store, artifacts in the UI.
- *bare*: the same stages as plain function calls in the same order, register and deploy included.
- *again*: `produce` once more in another fresh process: everything is cached. `start-up` is the
  process until it calls the flow, `seconds` the call.
`cpu` is the same ratio of the CPU seconds of the process and its workers, imports included: the
figure to trust while other programs take the cores. Epochs are chosen so that a bare run of
flights takes about a minute. Leave the code alone meanwhile: its edits change the keys.
Goals: flow at most 1.10 times bare; again under 3 s beyond start-up.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import measuring
from models import catalog
from models.digests import json_digest
from models.spec import Gate, Training

EPOCHS = {"flights": 2, "digits": 12}
GOAL_FLOW, GOAL_AGAIN = 1.10, 3.0
PACKAGES = ("prefect", "mlflow", "dask", "distributed", "torch", "onnxruntime")


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--lines", default=",".join(EPOCHS), help="which lines, comma-separated")
    parser.add_argument("--inside", choices=("flow", "bare"), help="run as a contestant")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_inside(options.inside, options.lines)))
        return
    figures: dict[str, Any] = {}
    rows = []
    for line in options.lines.split(","):
        contestants = {"flow": _contestant(line, "flow"), "bare": _contestant(line, "bare")}
        found = measuring.in_turns(contestants, options.turns)
        flow, bare = found["flow"], found["bare"]
        figures[line] = {
            "flow over bare": measuring.ratio(
                [run["seconds"] for run in flow], [run["seconds"] for run in bare]
            ),
            "flow over bare, cpu": measuring.ratio(
                [run["cpu"] for run in flow], [run["cpu"] for run in bare]
            ),
            "goal": GOAL_FLOW,
            "flow seconds": median(run["seconds"] for run in flow),
            "bare seconds": median(run["seconds"] for run in bare),
            "again seconds": median(run["again"]["seconds"] for run in flow),
            "again start-up seconds": median(run["again"]["start-up"] for run in flow),
            "again process seconds": median(run["again"]["process"] for run in flow),
            "goal again": GOAL_AGAIN,
            "all": found,
        }
        rows.append(
            {
                "line": line,
                "flow s": f"{figures[line]['flow seconds']:.1f}",
                "bare s": f"{figures[line]['bare seconds']:.1f}",
                "flow / bare": f"{figures[line]['flow over bare']:.3f}",
                "cpu": f"{figures[line]['flow over bare, cpu']:.3f}",
                "again s": f"{figures[line]['again seconds']:.2f}",
                "its start-up s": f"{figures[line]['again start-up seconds']:.2f}",
            }
        )
    measuring.publish("orchestration", figures, rows, PACKAGES, options.json)


def _contestant(line: str, who: str) -> Callable[[], dict[str, Any]]:
    """One cold run with services of its own, and for the flow a second, cached one."""
    from deployments.local.stack import PREFECT, SERVER, STORE, stack

    def contestant() -> dict[str, Any]:
        with measuring.temporary_home(), stack(STORE, PREFECT, SERVER):
            # In a process of its own: this one keeps the keys of the first store it met.
            measuring.run(measuring.python("modelmint", "land", line))
            command = measuring.python("benchmarks.orchestration", "--inside", who, "--lines", line)
            cold = measuring.run(command)
            found = {**cold.answer, "cpu": cold.cpu}
            if who == "flow":
                run = measuring.run(command)
                found["again"] = {**run.answer, "process": run.wall}
                if run.answer["ran"]:
                    ran = ", ".join(run.answer["ran"])
                    raise RuntimeError(f"the second run ran {ran}: was the code edited meanwhile?")
            return found

    return contestant


def _inside(who: str, name: str) -> dict[str, Any]:
    """As a contestant: import everything, then do it against the clock."""
    import psutil

    import flows.produce
    from tasks import cluster

    training = catalog.find(name).training.model_copy(update={"epochs": EPOCHS[name]})
    # Few epochs must not break a floor: a refused version would not be deployed.
    gate = catalog.find(name).gate.model_copy(update={"floors": {}})
    startup = time.time() - psutil.Process().create_time()
    start = time.perf_counter()
    try:
        if who == "bare":
            _bare(name, training, gate)
            ran: list[str] = []
        else:
            found = flows.produce.produce(name, training=training, gate=gate)
            ran = [run.name for run in found.stages if not run.cached]
        return {"seconds": time.perf_counter() - start, "start-up": startup, "ran": ran}
    finally:
        cluster.close()


def _bare(name: str, training: Training, gate: Gate) -> None:
    """The body of `flows.produce.produce` without Prefect."""
    from tasks import cluster
    from tasks.clean import clean
    from tasks.compress import compress
    from tasks.deploy import deploy
    from tasks.evaluate import evaluate
    from tasks.gate import decide
    from tasks.promotion import champion_for
    from tasks.recipe import recipe
    from tasks.recorded import with_dataset
    from tasks.register import register
    from tasks.snapshot import list_objects, raw_prefix, take_snapshot
    from tasks.stage import StageRun
    from tasks.train import train

    spec = catalog.find(name).changed(training=training, gate=gate).on(cluster.device())
    profile, threads = spec.training.profile, spec.training.threads
    prefix = raw_prefix(spec.data)
    snapshot = take_snapshot.bare(prefix, list_objects(spec.data))
    dataset = clean.bare(spec.data, spec.objective, prefix, snapshot)
    weights = train.bare(spec.model, spec.training, dataset)
    confidence = spec.gate.confidence
    report = evaluate.bare(spec.model, dataset, weights, confidence, profile, threads)
    artifact = compress.bare(spec.model, spec.training, spec.budget, dataset, weights)
    champion = with_dataset(spec, champion_for(name, artifact.digest))
    verdict = decide.bare(
        spec.gate, spec.budget, dataset, artifact, report, champion, profile, threads
    )
    # The recipe takes the records of the stages, which the flow would have made.
    refs = {"clean": dataset, "train": weights, "evaluate": report, "compress": artifact}
    calls: dict[str, dict[str, Any]] = {
        "clean": clean.identity(spec.data, spec.objective, prefix, snapshot),
        "train": train.identity(spec.model, spec.training, dataset),
        "evaluate": evaluate.identity(spec.model, dataset, weights, confidence, profile, threads),
        "compress": compress.identity(spec.model, spec.training, spec.budget, dataset, weights),
    }
    runs = [
        StageRun(
            name=stage, key=json_digest(calls[stage]), digest=ref.digest, cached=False, seconds=0.0,
            observed={}, fingerprint=ref.fingerprint, identity=calls[stage],
        )
        for stage, ref in refs.items()
    ]  # fmt: skip
    recorded = recipe(spec, snapshot, artifact, runs)
    version = register.bare(recorded, prefix, snapshot, artifact, report, verdict)
    endpoint = deploy.bare(version, artifact, verdict)
    if endpoint.serving != version.number:
        raise RuntimeError(f"the bare run serves {endpoint.serving}, not {version.number}")


if __name__ == "__main__":
    main()
