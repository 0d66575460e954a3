"""Determinism: what it costs in training time, and what the `portable` profile costs on top.

    python -m benchmarks.determinism [--json] [--turns 3] [--lines digits,flights]

About seven minutes on two idle cores. `digits` is a CNN, `flights` an MLP; every training is a
process of its own on one thread, from the same cleaned rows, and judges the validation rows after
every epoch. Time is CPU seconds an epoch, which other programs on the machine hardly move; the
trainer's first epoch is left out, for it begins before anything is told.

- *fast*, *portable*: `tasks.trainer.fit` in that numeric profile.
- *unrestrained*: the same trainer in no profile: PyTorch picks its algorithms, MKL its instructions
  and order, and no step is seeded. It keeps the fused optimizer, the settings of malloc and the
  checkpoints, which cost or save time but determine nothing here.
- *bare*: the loop of `benchmarks.training`, as PyTorch is usually written: eager, unfused, no
  checkpoint, no seed.

Goals: `fast` at most 1.05 times the time of a loop that is not deterministic, held against both;
`portable` at most 1.75 times `fast`.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

from benchmarks import measuring
from benchmarks.training import Case, cleaned, train_job
from models import catalog
from models.digests import bytes_digest
from tasks import isolated
from tasks.isolated import Emit, Profile
from tasks.jobs import TrainJob
from tasks.refs import Weights

CASES = (Case("digits", "cnn", 3), Case("flights", "mlp", 2))
TIMED, UNRESTRAINED = "benchmarks.determinism:timed", "benchmarks.determinism:unrestrained"
GOALS = {
    ("fast", "unrestrained"): 1.05,
    ("fast", "bare"): 1.05,
    ("portable", "fast"): 1.75,
}
PACKAGES = ("torch", "numpy")


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    names = ",".join(case.line for case in CASES)
    parser.add_argument("--lines", default=names, help="which lines, comma-separated")
    options = parser.parse_args()
    figures = _measured(options.turns, options.lines.split(","))
    rows = [
        {
            "line": line,
            "time of": over,
            "over": under,
            "measured": f"{figures[line][f'{over} over {under}']:.3f}x",
            "goal": f"<= {goal}x",
        }
        for line in figures
        for (over, under), goal in GOALS.items()
    ]
    goals = {f"{over} over {under}": goal for (over, under), goal in GOALS.items()}
    measuring.publish("determinism", {"goals": goals, **figures}, rows, PACKAGES, options.json)


def _measured(turns: int, lines: list[str]) -> dict[str, Any]:
    from deployments.local.stack import STORE, stack

    figures: dict[str, Any] = {}
    with measuring.temporary_home() as home, stack(STORE):
        for case in CASES:
            if case.line not in lines:
                continue
            line = catalog.find(case.line).on("cpu")
            job = train_job(line, case, cleaned(line))
            path = home / "job.json"
            path.write_text(job.model_dump_json())
            found = measuring.in_turns(_contestants(job, path), turns)
            ratios = {
                f"{over} over {under}": measuring.ratio(found[over], found[under])
                for over, under in GOALS
            }
            seconds = {f"{who} CPU seconds an epoch": median(all_) for who, all_ in found.items()}
            figures[case.name] = {**ratios, **seconds, "all": found}
    return figures


def _contestants(job: TrainJob, path: Path) -> dict[str, Callable[[], float]]:
    """What an epoch of each takes, in CPU seconds."""
    threads = job.training.threads

    def trained(target: str, variables: dict[str, str]) -> float:
        # A checkpoint of its own: a training that is done would not be done again.
        place = {"checkpoint": bytes_digest(os.urandom(32))}
        text = job.model_copy(update=place).model_dump_json()
        ends: list[dict[str, Any]] = []
        isolated.run(target, text, variables, ends.append)
        return float(ends[-1]["cpu"] - ends[0]["cpu"]) / (len(ends) - 1)

    def bare() -> float:
        command = measuring.python("benchmarks.training", "--inside", "bare", str(path))
        counted = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return float(measuring.run(command, counted).answer["cpu an epoch"])

    profiles: dict[str, Callable[[], float]] = {
        profile: partial(trained, TIMED, isolated.environment(profile, threads))
        for profile in get_args(Profile)
    }
    loose = _loose(threads)
    return {**profiles, "unrestrained": lambda: trained(UNRESTRAINED, loose), "bare": bare}


def _loose(threads: int) -> dict[str, str]:
    """The variables of `fast` that determine no bit: threads, and how malloc keeps its blocks."""
    kept = ("_NUM_THREADS", "_MAX_THREADS", "_THRESHOLD_")
    variables = isolated.environment("fast", threads)
    return {name: value for name, value in variables.items() if name.endswith(kept)}


def timed(job: TrainJob, emit: Emit) -> Weights:
    """In the isolated process: the trainer, telling the CPU seconds used when an epoch ends."""
    from tasks import trainer

    return trainer.fit(job, lambda detail: emit({**detail, "cpu": time.process_time()}))


def unrestrained(job: TrainJob, emit: Emit) -> Weights:
    """In the isolated process: the trainer with nothing that makes it repeat."""
    import torch

    from tasks import trainer

    # By name: a checker knows that neither is meant to be replaced.
    setattr(torch, "manual_seed", lambda _: torch.default_generator)  # noqa: B010
    setattr(trainer, "deterministic", torch.set_num_threads)  # noqa: B010
    return timed(job, emit)


if __name__ == "__main__":
    main()
