"""Runs whose process died are started again, and go on from their last finished stage.

A production shows that it lives by the beat of its line's turn (tasks.turn). One that is running
in Prefect's books while nobody's beat is seen is dead: would it wait, it would have its turn by
now. Runs of other flows show it by Prefect's heartbeats, which count anew after Prefect was away;
what changes production is never begun a second time. A worker that lives reports a flow's crash by
itself. What was submitted and never ran is noticed by its age, and what failed because a service
was away, or memory or disk short, is tried again too, each time after a longer pause. All ages are
what this process saw with its own monotonic clock.
"""

import logging
import re
import time
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType

from deployments.watcher.runs import CONTROL, FLOW, Runs, line_of
from deployments.watcher.settings import Settings
from tasks.lease import lease
from tasks.store import StoreError
from tasks.turn import end, whose

log = logging.getLogger("modelmint.watcher")
MISSED = 2.5
"""Prefect's heartbeats that do not come before a run counts as dead."""
RARELY = 180.0
"""Seconds between heartbeats where nobody set them; a run's own pace is known by its second."""
# What the clients of the store, Prefect, MLflow, Dask and the model server raise when the other
# side is not there or its disk is full, and what is raised where a process was killed, maybe for
# want of memory; a failed run's message has it.
AWAY = re.compile(
    r"\b(StoreError|ConnectError|ConnectTimeout|ReadError|ReadTimeout|RemoteProtocolError"
    r"|CommClosedError|FutureCancelledError|Timed out trying to connect|ServerAwayError"
    r"|ResourceError|MlflowException: API request to)\b"
)
# Also an object that was gone when it was to be read: what is listed anew is there.
SHORT = re.compile(r"\b(KilledWorker|LostWorkerError|MissingError|ended without an answer)\b")
WAS_AWAY = "something was away"
LEASE, LEASE_SECONDS = "watchdog.lease", 20.0
"""Held while a run is started again: of several watchers one does it. For no longer is it waited:
a run whose beat was heard before that might look silent after it."""
OUTAGES = 24
"""Times a run is started again for outages in a day: hourly, after the first few."""
PAUSE, LONGER, LONGEST = 15.0, 4, 3600.0
"""Seconds before what failed so is tried again, how many times that the next time, and at most."""
WORKERS_WORD = "Flow run infrastructure exited"
"""What Prefect's worker says last of a process that died, seconds after the first report of it."""
SETTLED = 15.0
"""Seconds after which a run counts as crashed without that: what the worker says later would undo
that it is started again."""


class _Death(NamedTuple):
    """Why a run counts as dead, and whether it may come to that `tries` times only."""

    reason: str
    counted: bool = True


class _Heard(NamedTuple):
    """A run's last heartbeat, since when, and after how many seconds it came at most."""

    beat: str
    since: float
    pace: float


class Watchdog:
    """What this process has seen of unfinished runs; nothing is lost when it starts anew."""

    def __init__(self, settings: Settings, runs: Runs) -> None:
        self.settings, self.runs = settings, runs
        # Run -> its state and since when; line -> the last sign of life and since when.
        self._states: dict[UUID, tuple[UUID | None, float]] = {}
        self._beats: dict[str, tuple[str, float]] = {}
        self._heard: dict[UUID, _Heard] = {}  # of runs of other flows
        self._given_up: set[UUID] = set()
        self._flows: dict[UUID, str] = {}

    def look(self) -> None:
        """Look at every unfinished run and start the dead again; raises httpx.HTTPError."""
        # All ages count from when an answer had come to when the next was asked for: an answer that
        # takes a minute, as while Prefect comes back, makes nobody look silent for a minute.
        asked = time.monotonic()
        # Whatever raises below, what was heard before it counts no more.
        heard, self._heard = self._heard, {}
        found = self.runs.unfinished()
        now = time.monotonic()
        self._states = {
            run.id: self._states[run.id]
            if run.id in self._states and self._states[run.id][0] == run.state_id
            else (run.state_id, now)
            for run in found
        }
        running = [run for run in found if run.state_type == StateType.RUNNING]
        self._listen({line_of(run) for run in running if self._produces(run)})
        others = [run for run in running if not self._produces(run)]
        last = [(run, self.runs.heartbeat(run.id)) for run in others]
        now = time.monotonic()
        self._heard = {run.id: self._noted(run, heard.get(run.id), beat, now) for run, beat in last}
        for run in found:
            death = self._dead(run, asked)
            if death is not None:
                self._mend(run, death)

    def _noted(self, run: FlowRun, known: _Heard | None, beat: str, now: float) -> _Heard:
        """What is known of a run once this was its last heartbeat.

        Where no deployment says how often it beats, what it does shows.
        """
        if known is not None and known.beat == beat:
            return known
        told = self.runs.pace(run)
        if known is None or not known.beat:
            return _Heard(beat, now, told or RARELY)
        return _Heard(beat, now, max(told or 0.0, now - known.since))

    def _flow(self, run: FlowRun) -> str:
        if run.flow_id not in self._flows:
            self._flows[run.flow_id] = self.runs.client.read_flow(run.flow_id).name
        return self._flows[run.flow_id]

    def _produces(self, run: FlowRun) -> bool:
        return self._flow(run) == FLOW

    def _listen(self, lines: set[str]) -> None:
        """Note whose beat changed; a line whose beat cannot be read begins anew."""
        heard: dict[str, tuple[str, float]] = {}
        for line in lines:
            try:
                change = whose(line).change
            except StoreError:
                continue
            known = self._beats.get(line)
            same = known is not None and known[0] == change
            heard[line] = known if known and same else (change, time.monotonic())
        self._beats = heard

    def _dead(self, run: FlowRun, now: float) -> _Death | None:
        """Why the run cannot be alive; None when it may be."""
        age = now - self._states[run.id][1]
        if run.state_type == StateType.FAILED:
            return self._failed(run, age)
        reason = self._silent(run, age, now)
        return _Death(reason) if reason else None

    def _failed(self, run: FlowRun, age: float) -> _Death | None:
        """Whether what it lacked may be there by now."""
        said = (run.state.message if run.state else "") or ""
        found = SHORT.search(said) or AWAY.search(said)
        if not found or not run.deployment_id or age < PAUSE:
            return None
        counted = SHORT.search(said) is not None
        before = sum(_counted(reason) == counted for reason in self.runs.resumed(run.id))
        if age < min(LONGEST, PAUSE * LONGER**before):
            return None
        return _Death(f"{'it fell short' if counted else WAS_AWAY} ({found[0]})", counted)

    def _silent(self, run: FlowRun, age: float, now: float) -> str:
        if run.state_type == StateType.CRASHED:
            # Only a worker can start it again; a command was told by whoever typed it.
            said = (run.state.message if run.state else "") or ""
            settled = WORKERS_WORD in said or age >= SETTLED
            return "its process died" if run.deployment_id and settled else ""
        if run.state_type == StateType.PENDING:
            late = age > self.settings.pending
            return f"submitted {age:.0f} s ago and does not run" if late else ""
        line, longest = line_of(run), self.settings.silent
        if not self._produces(run):
            heard = self._heard[run.id]
            if not heard.beat and self.runs.pace(run) is None:  # nothing says that it ever beats
                return ""
            since, longest = heard.since, MISSED * heard.pace
        elif line in self._beats:
            since = self._beats[line][1]
        else:
            return ""
        silent = min(age, now - since)
        return f"no sign of life for {silent:.0f} s" if silent > longest else ""

    def _mend(self, run: FlowRun, death: _Death) -> None:
        reason = death.reason
        if run.id in self._given_up:
            return
        if run.deployment_id is None:
            log.warning("run %s: %s; it was no deployment's: run it again", run.name, reason)
            self.runs.crash(run, reason)
            return
        if self._flow(run) in CONTROL:
            log.error("run %s: %s; look what it did, and run it again", run.name, reason)
            self.runs.crash(run, f"{reason}; what changes production is not begun again by itself")
            return
        with lease(LEASE, str(run.id), LEASE_SECONDS):
            # Or another watcher was quicker, or the run lives.
            if self.runs.is_still(run):
                self._begin_again(run, death)

    def _begin_again(self, run: FlowRun, death: _Death) -> None:
        reason, before = death.reason, self.runs.resumed(run.id)
        tried = sum(_counted(one) == death.counted for one in before)
        if tried >= (self.settings.tries if death.counted else OUTAGES):
            log.error(
                "run %s: %s, and was started again %d times: given up", run.name, reason, tried
            )
            self.runs.crash(run, f"{reason}; started again {tried} times, given up")
            self._given_up.add(run.id)
            return
        log.warning("run %s: %s; it is started again (%d)", run.name, reason, len(before) + 1)
        with suppress(StoreError):
            end(line_of(run), str(run.id))
        self.runs.resume(run, reason, len(before) + 1)


def _counted(reason: str) -> bool:
    """Whether what a run was started again for may come only so often; whatever was away comes
    back, and what was killed may be killed each time."""
    return not reason.startswith(WAS_AWAY)
