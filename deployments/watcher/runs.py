"""Prefect as the watcher needs it: telling an event, finding runs, starting one again."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled

from models import catalog

FLOW = "produce"
REPEATABLE = (FLOW, "search", "score", "monitor", "monitor-lines", "replay", "replay-sample")
"""Flows that may be begun a second time: what they have done is found, and not done again."""
CONTROL = ("rollback", "promote")
"""Flows that must not: somebody may have decided otherwise since."""
GOING = (StateType.PENDING, StateType.RUNNING)
ENDED = (StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
RESUMED = "Resumed"
HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_SETTING = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
SOON = timedelta(seconds=60)
"""A run that is due so soon will list what is there now."""
DAY = timedelta(days=1)
MOST = 200
"""The most the API gives at once."""


class Runs:
    """The runs at PREFECT_API_URL of a work pool; every method raises httpx.HTTPError."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.client: SyncPrefectClient = get_client(sync_client=True)
        self._paces: dict[UUID, float | None] = {}

    def tell(self, event: dict[str, object]) -> None:
        """Hand over an event; the server takes one id once."""
        body = [{**event, "occurred": datetime.now(UTC).isoformat()}]
        self.client.request("POST", "/events", json=body).raise_for_status()

    def alive(self) -> dict[str, FlowRun]:
        """By line, a production that runs or is due."""
        due = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) + SOON)
        waiting = self._find((StateType.SCHEDULED,), due)
        return {line_of(run): run for run in (*waiting, *self._find(GOING))}

    def ended_since(self, line: str, moment: float) -> list[FlowRun]:
        """The line's productions begun after the moment (1970 UTC seconds) that came to no end.

        Were the clocks of two machines to differ, one would be overlooked, and tried once more.
        """
        after = FlowRunFilterExpectedStartTime(after_=datetime.fromtimestamp(moment, UTC))
        return [run for run in self._find(ENDED, after) if line_of(run) == line]

    def unfinished(self) -> list[FlowRun]:
        """Runs of this project's flows: pending, running, or that crashed or failed since a day.

        A Prefect server may be shared, and others' runs are not ours to judge: ours have the work
        pool of the settings, or, started by a command, a line that is known here.
        """
        day = FlowRunFilterEndTime(after_=datetime.now(UTC) - DAY)
        found = [
            *self._find(GOING, flows=(*REPEATABLE, *CONTROL)),
            *self._find((StateType.CRASHED, StateType.FAILED), ended=day, flows=REPEATABLE),
        ]
        return [run for run in found if self._ours(run)]

    def _ours(self, run: FlowRun) -> bool:
        if run.deployment_id is not None:
            return run.work_pool_name == self.pool
        return line_of(run) in catalog.sound()[0]

    def is_still(self, run: FlowRun) -> bool:
        """Whether the run's state is the one that was read."""
        return self.client.read_flow_run(run.id).state_id == run.state_id

    def heartbeat(self, run: UUID) -> str:
        """The id of the last heartbeat Prefect's engine sent for the run; empty before the first.

        It sends one as the run begins and then every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds.
        """
        wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
        body = {"filter": wanted, "limit": 1}
        events = self.client.request("POST", "/events/filter", json=body).json()["events"]
        return str(events[0]["id"]) if events else ""

    def pace(self, run: FlowRun) -> float | None:
        """Seconds between the run's heartbeats, as its deployment sets them; None where unset."""
        if run.deployment_id is None:
            return None
        if run.deployment_id not in self._paces:
            try:
                variables = self.client.read_deployment(run.deployment_id).job_variables or {}
            except ObjectNotFound:
                # It was deleted since, and the run goes on.
                variables = {}
            seconds = variables.get("env", {}).get(HEARTBEAT_SETTING)
            self._paces[run.deployment_id] = None if seconds is None else float(seconds)
        return self._paces[run.deployment_id]

    def resumed(self, run: UUID) -> list[str]:
        """Why the run was started again, each time of the last day."""
        day = datetime.now(UTC) - DAY
        states = self.client.read_flow_run_states(run)
        return [s.message or "" for s in states if s.name == RESUMED and s.timestamp > day]

    def resume(self, run: FlowRun, reason: str, number: int) -> None:
        """Have a worker start the run again; what it had finished is in the cache."""
        self.crash(run, reason)
        again: State[Any] = Scheduled(message=f"{reason}; start {number} after it", name=RESUMED)
        self.client.set_flow_run_state(run.id, again, force=True)

    def crash(self, run: FlowRun, reason: str) -> None:
        """Write down that the run's process is no more, and give its slots back."""
        if run.state is None or not run.state.is_final():
            self.client.set_flow_run_state(run.id, Crashed(message=reason))

    def _find(
        self,
        states: Sequence[StateType],
        expected: FlowRunFilterExpectedStartTime | None = None,
        ended: FlowRunFilterEndTime | None = None,
        flows: Sequence[str] = (FLOW,),
    ) -> list[FlowRun]:
        kinds = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        return self.client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
            flow_run_filter=FlowRunFilter(
                state=kinds, expected_start_time=expected, end_time=ended
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=MOST,
        )


def line_of(run: FlowRun) -> str:
    """The line a production is of."""
    return str(run.parameters.get("line", ""))
