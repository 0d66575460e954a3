from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    FlowRun,
    StateType,
)
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Completed, State

from deployments.watcher import line as line_module
from deployments.watcher import watchdog as watchdog_module
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from deployments.watcher.watchdog import Watchdog

POOL, OTHERS = "modelmint", "of-another-team"
SETTINGS = Settings(silent=30.0, pending=90.0, tries=2)


class Clock:
    """A monotonic clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock the watcher waits by."""
    clock = Clock()
    for module in (line_module, watchdog_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(scope="module")
def runs(prefect_service: str) -> Iterator[Runs]:
    del prefect_service
    runs = Runs(POOL)
    for pool in (POOL, OTHERS):
        with suppress(ObjectAlreadyExists):
            runs.client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    yield runs
    runs.client._client.close()


@pytest.fixture
def line() -> str:
    """A name that no other test's runs have."""
    return f"line-{uuid4().hex[:8]}"


@pytest.fixture
def started(runs: Runs, line: str) -> Iterator[Callable[..., FlowRun]]:
    """A production of the line in the given state; its deployment runs one at a time."""
    client = runs.client
    deployment = client.create_deployment(
        flow_id=client.create_flow_from_name("produce"),
        name=line,
        enforce_parameter_schema=False,
        work_pool_name=POOL,
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
    )
    made: list[UUID] = []

    def start(*states: State[Any]) -> FlowRun:
        run = client.create_flow_run_from_deployment(deployment, parameters={"line": line})
        made.append(run.id)
        for state in states:
            client.set_flow_run_state(run.id, state)
        return run

    yield start
    for run in made:
        client.set_flow_run_state(run, Completed(), force=True)


@pytest.fixture
def watchdog(runs: Runs, bucket: str, clock: Clock) -> Watchdog:
    return Watchdog(SETTINGS, runs)


def state(runs: Runs, run: FlowRun) -> tuple[StateType | None, str | None]:
    now = runs.client.read_flow_run(run.id)
    return now.state_type, now.state_name
