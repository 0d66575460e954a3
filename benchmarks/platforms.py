"""Platforms: do the stages give the same bits on processors of other kinds, in both profiles?

    python -m benchmarks.platforms [--json] [--processors Haswell,EPYC-Rome] [--lines digits]
                                   [--profiles portable]

About twenty minutes on two idle cores, most of it emulation; Ctrl-C cuts it short. Needs
`qemu-x86_64` 7.2 or newer, the first that knows AVX2 (Debian, Ubuntu: `apt-get install qemu-user`).

One native run of two small lines, `diabetes` (an MLP) and `digits` (a CNN), gives the reference.
Then every stage runs in an isolated process as `tasks.isolated.run` starts it, with the variables
of each profile, on every processor: natively once more, as a control, and under
`qemu-x86_64 -cpu NAME`. Each stage is given the native outputs of the stages before it, so that one
difference does not hide behind another. `clean` belongs to no profile: Dask workers run it.

The stopwatch of `compress` goes one round of its sixty: no digest has it, and emulated it would
take half an hour.
An emulated processor has the instructions and the CPUID of the real one, not its caches and not the
approximate reciprocals of its maker: what differs here differs there, the reverse is not proven.
No emulated processor has AVX-512. If this machine has, the native runs do. Augmented images are not
tried.

Goal: `portable` equal everywhere; `fast` promises a like machine only, and may differ.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, JsonValue, SerializeAsAny

from benchmarks import measuring
from models import catalog
from models.data import Data
from models.digests import bytes_digest
from models.objectives import Objective
from models.open import Frozen
from models.spec import Line
from tasks import isolated
from tasks.isolated import Emit, Profile
from tasks.jobs import CompressJob, EvaluateJob, TrainJob
from tasks.refs import Artifact, Dataset, Ref, Report, Snapshot, Weights

R = TypeVar("R", bound=Ref)
QEMU = "qemu-x86_64"
NATIVE = "native"
PROCESSORS = ("Haswell", "EPYC-Rome", "Skylake-Client")
LINES: dict[str, tuple[str, dict[str, JsonValue], dict[str, None]]] = {
    "diabetes": ("first", {}, {}),
    "digits": ("shard-0", {"size": "tiny"}, {"augmentation": None}),
}
"""Lines, the slice of their example data that is landed, what is changed of their network and of
their training: rotated images are gathered under a mask, in which qemu 7.2 crashes."""
EPOCHS = 1
SINGLE = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What `tasks.cluster` sets to 1 for the workers of this machine."""
SEEN = {"digest", "stored", "observed", "fingerprint"}
PACKAGES = ("torch", "numpy", "scipy", "polars", "onnx", "onnxruntime", "onnxscript")


class CleanJob(Frozen):
    """What `clean` takes, for a process of its own."""

    data: SerializeAsAny[Data]
    objective: SerializeAsAny[Objective]
    prefix: str
    snapshot: Snapshot


class Step(NamedTuple):
    """One stage of one line in one profile, ready to run."""

    line: str
    profile: str
    stage: str
    target: str
    job: BaseModel
    result: type[Ref]
    variables: dict[str, str]

    def run(self) -> Ref | str:
        """The stage's output, or in what words it failed."""
        job = self.job
        if isinstance(job, TrainJob):
            # A checkpoint of its own: a training that is half done would not be done from scratch.
            job = job.model_copy(update={"checkpoint": bytes_digest(os.urandom(32))})
        try:
            text = isolated.run(self.target, job.model_dump_json(), self.variables, lambda _: None)
        except isolated.IsolatedError as error:
            return str(error)[-400:]
        return self.result.model_validate_json(text)


def main() -> None:
    """Measure, print, write the result."""
    options = _options()
    if shutil.which(QEMU) is None:
        sys.exit(f"there is no {QEMU}: `apt-get install qemu-user` on Debian and Ubuntu")
    from deployments.local.stack import STORE, stack

    found: list[dict[str, Any]] = []
    with measuring.temporary_home(), ThreadPoolExecutor(options.jobs) as pool:
        measuring.add_test_lines()
        with stack(STORE):
            names, profiles = options.lines.split(","), options.profiles.split(",")
            reference = [pair for name in names for pair in _steps(name, profiles)]
            steps = [step for step, _ in reference]
            with suppress(KeyboardInterrupt):
                for name in (NATIVE, *options.processors.split(",")):
                    with _processor(name):
                        print(f"{len(steps)} stages on {name}", file=sys.stderr, flush=True)
                        for (step, first), output in zip(
                            reference, pool.map(Step.run, steps), strict=True
                        ):
                            place = {"line": step.line, "profile": step.profile}
                            place |= {"stage": step.stage, "processor": name}
                            found.append({**place, **_compared(first, output)})
                            print(found[-1], file=sys.stderr, flush=True)
    promised = [f for f in found if f["profile"] != "fast"]
    figures = {
        "qemu": _first_line(QEMU, "--version"),
        "equal where promised": sum(f["equal"] for f in promised),
        "promised": len(promised),
        "all": found,
    }
    measuring.publish("platforms", figures, _rows(found), PACKAGES, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--processors", default=",".join(PROCESSORS), help=f"see {QEMU} -cpu help")
    parser.add_argument("--lines", default=",".join(LINES), help=f"of {', '.join(LINES)}")
    both = ",".join(get_args(Profile))
    parser.add_argument("--profiles", default=both, help=f"of {both}")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time")
    return parser.parse_args()


def _steps(name: str, profiles: Sequence[Profile]) -> Iterator[tuple[Step, Ref]]:
    """Every stage of a line in the profiles, each with its native output."""
    from tasks.land import land
    from tasks.snapshot import list_objects, raw_prefix, take_snapshot

    part, model, training = LINES[name]
    line = catalog.find(name).changed(model=model).on("cpu")
    line = line.model_copy(update={"training": line.training.model_copy(update=training)})
    land(line, part)
    prefix = raw_prefix(line.data)
    snapshot = take_snapshot.bare(prefix, list_objects(line.data))
    job = CleanJob(data=line.data, objective=line.objective, prefix=prefix, snapshot=snapshot)
    single = dict.fromkeys(SINGLE, "1")
    step = Step(name, "", "clean", "benchmarks.platforms:cleaned", job, Dataset, single)
    dataset = _done(step, Dataset)
    yield step, dataset
    for profile in profiles:
        yield from _numeric(line, profile, dataset)


def _numeric(line: Line, profile: Profile, dataset: Dataset) -> Iterator[tuple[Step, Ref]]:
    training = line.training.model_copy(update={"epochs": EPOCHS, "profile": profile})
    threads, confidence = training.threads, line.gate.confidence
    variables = isolated.environment(profile, threads)

    def step(stage: str, target: str, job: BaseModel, result: type[Ref]) -> Step:
        return Step(line.name, profile, stage, target, job, result, variables)

    fit = TrainJob(
        model=line.model, training=training, dataset=dataset, checkpoint=bytes_digest(b"")
    )
    trained = step("train", "tasks.trainer:fit", fit, Weights)
    weights = _done(trained, Weights)
    yield trained, weights
    given: dict[str, Any] = {"model": line.model, "dataset": dataset, "weights": weights}
    measure = EvaluateJob(**given, threads=threads, confidence=confidence)
    evaluated = step("evaluate", "tasks.evaluate:measure", measure, Report)
    yield evaluated, _done(evaluated, Report)
    search = CompressJob(**given, training=training, budget=line.budget)
    compressed = step("compress", "benchmarks.platforms:compressed", search, Artifact)
    yield compressed, _done(compressed, Artifact)


def _done(step: Step, result: type[R]) -> R:
    found = step.run()
    if not isinstance(found, result):
        raise RuntimeError(f"natively, {step.line} {step.stage} fails: {found}")
    return found


@contextmanager
def _processor(name: str) -> Iterator[None]:
    """Have isolated processes run on an emulated processor."""
    if name == NATIVE:
        yield
        return
    python = sys.executable
    with tempfile.TemporaryDirectory(prefix="modelmint-emulated-") as folder:
        emulated = Path(folder) / "python"
        emulated.write_text(f'#!/bin/sh\nexec {QEMU} -cpu {name} "{python}" "$@"\n')
        emulated.chmod(0o755)
        sys.executable = str(emulated)
        try:
            yield
        finally:
            sys.executable = python


def cleaned(job: CleanJob, emit: Emit) -> Dataset:
    """In the isolated process: `clean` on a Dask worker that is a thread of it."""
    from distributed import LocalCluster

    from tasks import cluster
    from tasks.clean import clean
    from tasks.stage import afresh

    del emit
    with LocalCluster(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as here:
        os.environ[cluster.ADDRESS_SETTING] = here.scheduler_address
        with afresh(lambda *_: None):
            found = clean.bare(job.data, job.objective, job.prefix, job.snapshot)
        cluster.close()
    return found


def compressed(job: CompressJob, emit: Emit) -> Artifact:
    """In the isolated process: `compress`, with one round of its stopwatch."""
    from tasks import compress, inference

    inference.cpu_microseconds = partial(inference.cpu_microseconds, rounds=1)
    return compress.search(job, emit)


def _compared(first: Ref, found: Ref | str) -> dict[str, Any]:
    """Whether the outputs are equal; what of them and of their fingerprints is not."""
    if isinstance(found, str):
        return {"equal": False, "failed": found}
    before, now = (ref.model_dump(mode="json", exclude=SEEN) for ref in (first, found))
    return {
        "equal": first.digest == found.digest,
        "differs": sorted(_paths(before, now)),
        "fingerprint": {n: found.fingerprint.get(n) == d for n, d in first.fingerprint.items()},
    }


def _paths(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {*before, *now}:
            yield from _paths(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _paths(one, other, f"{path}.{number}")
    elif before != now:
        yield path


def _rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stage a row and a processor a column; then the same of the fingerprint's entries."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for f in found:
        words = {f["stage"]: "fails" if "failed" in f else _word(f["equal"])}
        # Each stage has taken the fingerprint once; one word tells of all.
        for library, equal in f.get("fingerprint", {}).items():
            words[f"fingerprint: {library}"] = _word(equal)
        for what, word in words.items():
            place = (f["line"], f["profile"], what)
            row = rows.setdefault(
                place, dict(zip(("line", "profile", "stage"), place, strict=True))
            )
            row[f["processor"]] = word if row.get(f["processor"], word) == word else "mixed"
    return list(rows.values())


def _word(equal: bool) -> str:
    return "equal" if equal else "differs"


def _first_line(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.partition("\n")[0]


if __name__ == "__main__":
    main()
