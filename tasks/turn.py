"""One production of a line at a time, whatever started it: schedule, click, event or command.

The turn is a lease in the bucket, so it also holds between commands and a cluster. Who waits lists
the bucket when its turn comes, so whatever landed meanwhile is in it; what finds nothing new ends
from the cache. Its holder's beat tells the watchdog that the run lives.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks import progress
from tasks.lease import Held, holder, lease, release

LONGEST = 7 * 24 * 3600.0
"""Seconds a run waits for runs that live."""


@contextmanager
def turn(line: str) -> Iterator[None]:
    """Have the line's turn for the block; raises LeaseError after a week of waiting."""
    from prefect import get_run_logger
    from prefect.runtime import flow_run

    behind: set[str] = set()

    def waiting(held: Held) -> None:
        if held.owner not in behind:
            behind.add(held.owner)
            progress.tell("turn", "started")
            progress.tell("turn", "progress", waiting_for=held.purpose)
            get_run_logger().info("waiting for run %s of line %s", held.purpose, line)

    with lease(key(line), str(flow_run.get_id() or ""), LONGEST, waiting):
        if behind:
            progress.tell("turn", "dropped")
        yield


def whose(line: str) -> Held:
    """The run that has the line's turn; its `purpose` is the Prefect flow run's id."""
    return holder(key(line))


def end(line: str, run: str) -> None:
    """Give the turn of a run that is known to be dead to whoever waits, sooner than it runs out."""
    held = whose(line)
    if held.owner and held.purpose == run:
        release(key(line), held)


def key(line: str) -> str:
    """Where the line's turn is, in the bucket."""
    return f"turns/{line}.lease"
