"""What the watcher asks of Prefect, of a real server."""

import time
from collections.abc import Callable
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Failed, Pending, Running

from deployments.watcher.runs import Runs


def test_alive_is_what_is_due_or_going(
    runs: Runs, started: Callable[..., FlowRun], line: str
) -> None:
    assert line not in runs.alive()
    run = started()
    assert runs.alive()[line].id == run.id
    for now in (Pending(), Running()):
        runs.client.set_flow_run_state(run.id, now)
        assert runs.alive()[line].id == run.id
    runs.client.set_flow_run_state(run.id, Completed())
    assert line not in runs.alive()


def test_runs_that_came_to_no_end_are_found_from_a_moment_on(
    runs: Runs, started: Callable[..., FlowRun], line: str
) -> None:
    moment = time.time()
    run = started(Pending(), Running(), Failed())
    started(Pending(), Running(), Completed())
    assert [found.id for found in runs.ended_since(line, moment)] == [run.id]
    assert runs.ended_since(line, time.time() + 1) == []


def test_an_event_told_twice_is_one(runs: Runs, line: str) -> None:
    for number in (1, 1, 2):
        runs.tell(
            {
                "id": str(UUID(int=number)),
                "event": "data.arrived",
                "resource": {"prefect.resource.id": f"modelmint.line.{line}"},
                "payload": {},
            }
        )
    wanted = {"filter": {"resource": {"id": [f"modelmint.line.{line}"]}}}
    for _ in range(100):
        # The server writes events down some at a time.
        found = runs.client._client.post("/events/filter", json=wanted).json()["events"]
        if len({event["id"] for event in found}) == 2:
            break
        time.sleep(0.2)
    assert sorted(event["id"] for event in found) == [str(UUID(int=n)) for n in (1, 2)]
