"""The watchdog: a real Prefect and store, a clock that is set."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import (
    FlowRun,
    StateType,
)
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled

from deployments.watcher.runs import HEARTBEAT, HEARTBEAT_SETTING, RESUMED, Runs
from deployments.watcher.watchdog import Watchdog
from tasks import lease as leases
from tasks.lease import lease
from tasks.store import store
from tasks.turn import key
from tests.deployments.watcher.conftest import OTHERS, POOL, SETTINGS, Clock, state


def test_a_silent_run_is_started_again_and_has_its_slot_back(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock, line: str
) -> None:
    run = started(Pending(), Running())
    terms = {"owner": "dead", "purpose": str(run.id), "beat": 9}
    store().put(key(line), json.dumps(terms).encode())
    for _ in range(4):
        watchdog.look()
        assert state(runs, run) == (StateType.RUNNING, "Running")
        clock.advance(9)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
    assert len(runs.resumed(run.id)) == 1
    # Nobody waits for the turn the dead run had.
    assert leases.holder(key(line)).owner == ""
    # Its deployment runs one at a time, and the dead run has left the place.
    runs.client.set_flow_run_state(run.id, Pending())
    runs.client.set_flow_run_state(run.id, Running())
    assert state(runs, run)[0] == StateType.RUNNING


@pytest.fixture
def running(runs: Runs, line: str) -> Iterator[Callable[..., FlowRun]]:
    """A run of the named flow that Prefect takes for running, as a deployment's."""
    client = runs.client
    made: list[UUID] = []

    def start(flow: str, seconds: int | None = None, pool: str = POOL) -> FlowRun:
        deployment = client.create_deployment(
            flow_id=client.create_flow_from_name(flow),
            name=line,
            enforce_parameter_schema=False,
            work_pool_name=pool,
            job_variables={"env": {HEARTBEAT_SETTING: str(seconds)}} if seconds else None,
        )
        run = client.create_flow_run_from_deployment(deployment, parameters={"line": line})
        made.append(run.id)
        for now in (Pending(), Running()):
            client.set_flow_run_state(run.id, now)
        return run

    yield start
    for run in made:
        client.set_flow_run_state(run, Completed(), force=True)


def beat(runs: Runs, run: FlowRun) -> None:
    """Have the run send a heartbeat."""
    told = {
        "id": str(uuid4()),
        "event": HEARTBEAT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        "payload": {},
    }
    runs.tell(told)
    for _ in range(100):
        # The server writes events down some at a time.
        if runs.heartbeat(run.id) == told["id"]:
            return
        time.sleep(0.2)
    raise AssertionError("the heartbeat was not written down")


def test_a_run_of_another_flow_that_sends_no_heartbeats_is_started_again(
    runs: Runs,
    running: Callable[..., FlowRun],
    watchdog: Watchdog,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, run = runs.client, running("monitor", 30)
    for _ in range(2):
        beat(runs, run)
        watchdog.look()
        clock.advance(30)
    clock.advance(40)
    watchdog.look()
    assert state(runs, run) == (StateType.RUNNING, "Running")
    # While Prefect is away nobody's heartbeats arrive.
    with monkeypatch.context() as away:
        away.setattr(runs, "unfinished", lambda: client.request("GET", "/nowhere"))
        with pytest.raises(httpx.HTTPError):
            watchdog.look()
    clock.advance(300)
    for _ in range(2):
        beat(runs, run)
        watchdog.look()
        clock.advance(30)
    clock.advance(40)
    watchdog.look()
    assert state(runs, run) == (StateType.RUNNING, "Running")
    clock.advance(6)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)


def test_a_run_that_died_before_its_first_heartbeat_is_started_again(
    runs: Runs, running: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    run = running("replay", 30)
    for _ in range(4):
        assert state(runs, run) == (StateType.RUNNING, "Running")
        watchdog.look()
        clock.advance(25)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)


def test_an_answer_that_takes_long_makes_nobody_look_silent(
    runs: Runs,
    started: Callable[..., FlowRun],
    watchdog: Watchdog,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = started(Pending(), Running())
    real = runs.unfinished

    def slowly() -> list[FlowRun]:
        found = real()
        clock.advance(300)
        return found

    with monkeypatch.context() as away:
        away.setattr(runs, "unfinished", slowly)
        watchdog.look()
    watchdog.look()
    assert state(runs, run) == (StateType.RUNNING, "Running")


def test_runs_of_another_work_pool_are_not_judged(
    runs: Runs, running: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    silent = running("score", 30, OTHERS)
    died = running("monitor", 30, OTHERS)
    runs.client.set_flow_run_state(died.id, Crashed())
    for _ in range(3):
        watchdog.look()
        clock.advance(500)
    assert state(runs, silent)[0] == StateType.RUNNING
    assert state(runs, died)[0] == StateType.CRASHED


def test_a_run_whose_deployment_is_gone_hinders_no_other(
    runs: Runs,
    running: Callable[..., FlowRun],
    started: Callable[..., FlowRun],
    watchdog: Watchdog,
    clock: Clock,
) -> None:
    orphan, silent = running("replay", 30), started(Pending(), Running())
    runs.client._client.delete(f"/deployments/{orphan.deployment_id}").raise_for_status()
    watchdog.look()
    clock.advance(31)
    watchdog.look()
    assert state(runs, silent) == (StateType.SCHEDULED, RESUMED)
    assert state(runs, orphan)[0] == StateType.RUNNING


@pytest.mark.slow
def test_a_run_of_which_nothing_says_when_it_beats_is_left_alone(
    runs: Runs, running: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    rarely, never, others = running("score"), running("monitor"), running("of another team")
    for _ in range(3):
        beat(runs, rarely)
        watchdog.look()
        clock.advance(180)
    clock.advance(260)
    watchdog.look()
    for run in (rarely, never, others):
        assert state(runs, run) == (StateType.RUNNING, "Running")
    clock.advance(11)
    watchdog.look()
    assert state(runs, rarely) == (StateType.SCHEDULED, RESUMED)
    assert state(runs, never)[0] == state(runs, others)[0] == StateType.RUNNING


@pytest.mark.parametrize("flow", ["rollback", "promote"])
def test_what_changes_production_is_not_begun_again(
    runs: Runs, running: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock, flow: str
) -> None:
    run = running(flow, 30)
    for _ in range(2):
        beat(runs, run)
        watchdog.look()
        clock.advance(30)
    clock.advance(100)
    watchdog.look()
    assert state(runs, run)[0] == StateType.CRASHED
    failed = Failed(message="Flow run encountered an exception: StoreError: it does not answer")
    runs.client.set_flow_run_state(run.id, failed, force=True)
    for _ in range(2):
        watchdog.look()
        clock.advance(1000)
    assert state(runs, run)[0] == StateType.FAILED


def test_a_run_whose_turn_beats_lives_and_so_does_who_waits_for_it(
    runs: Runs,
    started: Callable[..., FlowRun],
    watchdog: Watchdog,
    clock: Clock,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)
    run = started(Pending(), Running())
    waits = runs.client.create_flow_run_from_deployment(
        run.deployment_id, parameters={"line": line}
    )
    runs.client.set_flow_run_state(waits.id, Running(), force=True)
    with lease(key(line), str(run.id)):
        for _ in range(8):
            seen = leases.holder(key(line)).change
            while leases.holder(key(line)).change == seen:
                time.sleep(0.02)
            watchdog.look()
            clock.advance(20)
    assert state(runs, run) == state(runs, waits) == (StateType.RUNNING, "Running")
    # Nobody's beat is heard any more.
    for _ in range(3):
        watchdog.look()
        clock.advance(20)
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
    assert state(runs, waits) == (StateType.SCHEDULED, RESUMED)
    runs.client.set_flow_run_state(waits.id, Completed(), force=True)


def test_a_crashed_run_is_started_again_and_given_up_at_last(
    runs: Runs,
    started: Callable[..., FlowRun],
    watchdog: Watchdog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    died = Crashed(message="Flow run infrastructure exited with non-zero status code -9.")
    run = started(Pending(), Running(), died)
    for number in range(SETTINGS.tries):
        watchdog.look()
        assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
        assert len(runs.resumed(run.id)) == number + 1
        runs.client.set_flow_run_state(run.id, died, force=True)
    watchdog.look()
    assert state(runs, run)[0] == StateType.CRASHED
    assert "started again 2 times: given up" in caplog.text
    # Also for a watchdog that has only now begun.
    Watchdog(SETTINGS, runs).look()
    assert state(runs, run)[0] == StateType.CRASHED


def test_a_crash_is_mended_once_the_worker_had_its_say(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    first = Crashed(message="Process exited with status code: -9.")
    run, silent = (started(Pending(), Running(), first) for _ in range(2))
    watchdog.look()
    assert state(runs, run)[0] == state(runs, silent)[0] == StateType.CRASHED
    last = Crashed(message="Flow run infrastructure exited with non-zero status code -9.")
    runs.client.set_flow_run_state(run.id, last, force=True)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
    # Its worker died too.
    clock.advance(14)
    watchdog.look()
    assert state(runs, silent)[0] == StateType.CRASHED
    clock.advance(2)
    watchdog.look()
    assert state(runs, silent) == (StateType.SCHEDULED, RESUMED)
    assert len(runs.resumed(run.id)) == len(runs.resumed(silent.id)) == 1


def test_what_failed_for_want_of_a_service_is_started_again_and_other_failures_are_not(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    said = [
        "StoreError: s3://modelmint/x does not answer",
        "ServerAwayError: the model server at http://x does not answer: refused",
        "ResourceError: tasks.trainer:fit ended without an answer (SIGKILL)",
        "MlflowException: API request to http://x failed with exception refused",
    ]
    failed = [Failed(message=f"Flow run encountered an exception: {text}") for text in said]
    away = [started(Pending(), Running(), why) for why in failed]
    # Whatever kills it may do so each time: `tries` times and no more.
    killed = away[2]
    wrong = started(Pending(), Running(), Failed(message="ValueError: the store does not answer"))
    for pause in (15, 60, 240, 960, 3600, 3600):
        watchdog.look()
        clock.advance(pause - 1)
        watchdog.look()
        assert {state(runs, run)[0] for run in away} == {StateType.FAILED}
        clock.advance(2)
        watchdog.look()
        again = away if pause < 240 else [run for run in away if run is not killed]
        assert {state(runs, run) for run in again} == {(StateType.SCHEDULED, RESUMED)}
        # What was away is away still; the next pause is longer.
        for run, why in zip(away, failed, strict=True):
            runs.client.set_flow_run_state(run.id, why, force=True)
    assert state(runs, wrong)[0] == state(runs, killed)[0] == StateType.FAILED


def test_outages_do_not_use_up_the_tries_of_a_run_that_is_killed(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    away = Failed(message="Flow run encountered an exception: FutureCancelledError: lost")
    run = started(Pending(), Running(), away)
    for number in range(1, 5):
        watchdog.look()
        clock.advance(4000)
        watchdog.look()
        assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
        assert len(runs.resumed(run.id)) == number
        runs.client.set_flow_run_state(run.id, away, force=True)
    gone = Failed(message="Flow run encountered an exception: MissingError: raw/x was removed")
    for number in range(5, 5 + SETTINGS.tries):
        runs.client.set_flow_run_state(run.id, gone, force=True)
        watchdog.look()
        clock.advance(4000)
        watchdog.look()
        assert len(runs.resumed(run.id)) == number
    runs.client.set_flow_run_state(run.id, gone, force=True)
    watchdog.look()
    clock.advance(4000)
    watchdog.look()
    assert state(runs, run)[0] == StateType.FAILED


def test_a_crash_counts_from_when_the_run_ended(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog
) -> None:
    """A training of days that runs out of memory goes on too."""
    first = started()
    run = runs.client.create_flow_run_from_deployment(
        first.deployment_id,
        state=Scheduled(scheduled_time=datetime.now(UTC) - timedelta(days=3)),
    )
    for now in (Pending(), Running(), Crashed(message="Flow run infrastructure exited")):
        runs.client.set_flow_run_state(run.id, now, force=True)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)
    runs.client.set_flow_run_state(run.id, Completed(), force=True)


def test_of_two_watchers_one_starts_a_run_again(
    runs: Runs,
    started: Callable[..., FlowRun],
    watchdog: Watchdog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = started(Pending(), Running(), Crashed(message="Flow run infrastructure exited"))
    both_read = runs.unfinished()
    monkeypatch.setattr(runs, "unfinished", lambda: both_read)
    watchdog.look()
    Watchdog(SETTINGS, runs).look()
    assert len(runs.resumed(run.id)) == 1


def test_what_was_submitted_and_never_runs_is_submitted_again(
    runs: Runs, started: Callable[..., FlowRun], watchdog: Watchdog, clock: Clock
) -> None:
    run = started(Pending())
    watchdog.look()
    clock.advance(89)
    watchdog.look()
    assert state(runs, run)[0] == StateType.PENDING
    clock.advance(2)
    watchdog.look()
    assert state(runs, run) == (StateType.SCHEDULED, RESUMED)


def test_a_command_that_died_is_written_down_and_not_started_again(
    runs: Runs, watchdog: Watchdog, clock: Clock, line: str
) -> None:
    from prefect import flow

    def produce(line: str) -> None:
        del line

    mine, others = (
        runs.client.create_flow_run(flow(produce), parameters={"line": name})
        for name in ("digits", line)
    )
    for run in (mine, others):
        runs.client.set_flow_run_state(run.id, Running())
    watchdog.look()
    clock.advance(31)
    for _ in range(2):
        watchdog.look()
        assert state(runs, mine)[0] == StateType.CRASHED
        # No line of ours: it may live, and beat somewhere else.
        assert state(runs, others)[0] == StateType.RUNNING
    runs.client.set_flow_run_state(others.id, Completed())
