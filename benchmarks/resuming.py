"""How long a run whose process died stands still until it goes on by itself.

    python -m benchmarks.resuming       # about four minutes on two cores

The whole stack with default settings. A run of `tests/lines/diabetes.py` is started through its
deployment, and killed with SIGKILL while it trains: its *flow*, every process of the run, which the
worker reports; or the *worker* with it, which nobody reports and the watchdog has to notice. Taken
is the time from the kill until the run's training is Running again. Goal: two minutes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil

from benchmarks.measuring import ROOT, options, publish, temporary_home

LINES = ROOT / "tests" / "lines"
LINE = "diabetes"
EPOCHS = 600
"""Half a minute of training, so that a kill meets it."""
GOAL = 120.0
COMMAND = [sys.executable, "-m", "modelmint"]
WHAT = {"flow": [], "worker": ["prefect-worker"]}


def main() -> None:
    """Kill each so often, print, write the result."""
    chosen = options(__doc__, turns=2).parse_args()
    figures: dict[str, list[float]] = {what: [] for what in WHAT}
    with temporary_home() as home:
        os.environ["MODELMINT_LINES"] = str(LINES)
        try:
            subprocess.run([*COMMAND, "up", "--detach"], cwd=ROOT, check=True, capture_output=True)
            subprocess.run([*COMMAND, "land", LINE], cwd=ROOT, check=True, capture_output=True)
            stack = _Stack(home)
            stack.finished(stack.latest())
            for turn in range(chosen.turns):
                for number, what in enumerate(WHAT):
                    figures[what].append(stack.killed(what, EPOCHS + 2 * turn + number))
                    print(what, figures[what][-1], file=sys.stderr, flush=True)
        finally:
            subprocess.run([*COMMAND, "down"], cwd=ROOT, check=True)
    rows = [
        {
            "killed": what,
            "seconds until it trains again": round(median(found), 1),
            "slowest": round(max(found), 1),
            "goal": f"<= {GOAL:.0f}",
        }
        for what, found in figures.items()
    ]
    publish("resuming", figures, rows, ["prefect", "dask"], chosen.json)


class _Stack:
    """The running stack: its Prefect server and its processes."""

    def __init__(self, home: Path) -> None:
        from deployments.local.prefect_server import prefect_server

        running = prefect_server(home).running()
        assert running is not None
        self.home = home
        os.environ["PREFECT_API_URL"] = f"{running.url}/api"
        from prefect.client.orchestration import get_client

        # It asks again where the server has too much to do.
        self.client = get_client(sync_client=True)

    def _asked(self, method: Literal["GET", "POST"], path: Any, body: object = None) -> Any:
        return self.client.request(method, path, json=body).raise_for_status().json()

    def killed(self, what: str, epochs: int) -> float:
        """Start a run and kill what is said while it trains: the seconds until it trains again."""
        deployment = self._asked("GET", "/deployments/name/produce/arrivals")
        body = {"parameters": {"line": LINE, "training": {"epochs": epochs}}}
        path = f"/deployments/{deployment['id']}/create_flow_run"
        run = str(self._asked("POST", path, body)["id"])
        self._until(lambda: self._training(run, 0.0))
        for process in self._processes(run, WHAT[what]):
            process.kill()
        began = time.time()
        self._until(lambda: self._training(run, began))
        seconds = time.time() - began
        self.finished(run)
        return seconds

    def latest(self) -> str:
        """The run that the landed data starts."""
        found: list[dict[str, Any]] = []

        def came() -> bool:
            answer = self._asked("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC"})
            found[:] = [run for run in answer if not run["auto_scheduled"] and run["start_time"]]
            return bool(found)

        self._until(came)
        return str(found[0]["id"])

    def finished(self, run: str) -> None:
        """Wait for the run's end; raises RuntimeError where it fails for good."""
        self._until(lambda: self._asked("GET", f"/flow_runs/{run}")["state_type"] == "COMPLETED")

    def _training(self, run: str, since: float) -> bool:
        return any(
            task["name"].startswith("train") and task["state_type"] == "RUNNING"
            and _began(task) > since
            for task in self._tasks(run)
        )  # fmt: skip

    def _tasks(self, run: str) -> list[dict[str, Any]]:
        body = {"flow_runs": {"id": {"any_": [run]}}}
        found: list[dict[str, Any]] = self._asked("POST", "/task_runs/filter", body)
        return found

    def _processes(self, run: str, services: list[str]) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                names = process.environ()
            except psutil.Error:
                continue
            mark = names.get("MODELMINT_SERVICE", "")
            if not mark.startswith(str(self.home)):
                continue
            service = mark.rpartition("/")[2]
            if names.get("PREFECT__FLOW_RUN_ID") == run or service in services:
                found.append(process)
        return found

    def _until(self, holds: Callable[[], bool], seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise RuntimeError(f"it did not come to be within {seconds:.0f} s: see {self.home}")
            time.sleep(0.05)


def _began(task: dict[str, Any]) -> float:
    from datetime import datetime

    moment = task["start_time"]
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0


if __name__ == "__main__":
    main()
