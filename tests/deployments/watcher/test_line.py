"""When a line's watch tells: real listings, a clock that is set, and a Prefect that only notes."""

import logging
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import FlowRun

from deployments.watcher.line import HOLD, LineWatch
from deployments.watcher.listing import KnownListing
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from models import catalog
from tasks import arrivals
from tasks.snapshot import list_objects
from tasks.store import StoreError, store
from tests.deployments.watcher.conftest import Clock
from tests.tasks.samples import look

LINE = catalog.find("digits")
SETTINGS = Settings(quiet=2.0, longest=20.0, sweep=10.0, again=30.0, tries=2)


class Noted:
    """What a watch asks of Prefect, noted and answered as a test wants."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.going: set[str] = set()
        self.ended: list[FlowRun] = []

    def tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def alive(self) -> set[str]:
        return self.going

    def ended_since(self, line: str, moment: float) -> list[FlowRun]:
        assert line == LINE.name
        assert moment > 0
        return self.ended

    @property
    def told(self) -> list[int]:
        return [event["payload"]["number"] for event in self.events]


class Watched:
    """A watch and all it stands on."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.noted = clock, Noted()
        self.restart()

    def restart(self) -> None:
        """Another process takes over."""
        self.watch = LineWatch(LINE, SETTINGS, cast(Runs, self.noted))

    def land(self, name: str, content: bytes = b"1") -> None:
        store().put(self.watch.prefix + name, content)

    def run(self, seconds: float) -> None:
        """Have the watch step whenever it is due."""
        end = self.clock.now + seconds
        while self.watch.due <= end:
            self.clock.now = max(self.clock.now, self.watch.due)
            self.watch.step()
            assert self.watch.due > self.clock.now
        self.clock.now = end

    def take(self) -> None:
        """A run of the line lists."""
        arrivals.take(LINE.name, list_objects(LINE.data))


@pytest.fixture
def watched(bucket: str, clock: Clock) -> Watched:
    return Watched(clock)


def test_ten_objects_at_once_are_one_event_and_the_same_again_none(watched: Watched) -> None:
    watched.run(30)
    assert watched.noted.told == []
    for number in range(10):
        watched.land(f"{number}.tar")
    watched.run(15)
    assert watched.noted.told == [1]
    assert watched.noted.events[0]["payload"]["objects"] == 10
    watched.take()
    for number in range(10):
        watched.land(f"{number}.tar")
    watched.run(600)
    assert watched.noted.told == [1]


def test_a_hint_hastens_the_look(watched: Watched) -> None:
    watched.run(0)
    watched.land("1.tar")
    watched.run(3)
    assert watched.noted.told == []
    watched.watch.hasten()
    watched.run(3)
    assert watched.noted.told == [1]


def test_data_that_keeps_coming_is_told_after_the_longest_wait(watched: Watched) -> None:
    watched.run(0)
    for number in range(40):
        watched.land(f"{number}.tar")
        watched.watch.hasten()
        watched.run(1)
        if watched.noted.told:
            break
    assert 18 <= number <= 24
    # Its run lists all that is there then.
    watched.take()
    watched.run(60)
    assert watched.noted.told == [1]


def test_while_a_run_of_the_line_is_due_or_going_nothing_is_told(watched: Watched) -> None:
    watched.noted.going = {LINE.name}
    watched.land("1.tar")
    watched.run(50)
    assert watched.noted.told == []
    # The run lists, and more lands while it goes on.
    watched.take()
    watched.land("2.tar")
    watched.run(50)
    watched.land("3.tar")
    watched.run(50)
    assert watched.noted.told == []
    watched.noted.going = set()
    watched.run(HOLD + 10)
    assert watched.noted.told == [1]
    assert watched.noted.events[0]["payload"]["objects"] == 3


def test_an_event_of_which_nothing_came_is_told_again_ever_more_rarely(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.land("1.tar")
    watched.run(10)
    assert watched.noted.told == [1]
    watched.run(25)
    assert watched.noted.told == [1, 2]
    assert "is a deployment's trigger on it switched off?" in caplog.text
    watched.run(70)
    assert watched.noted.told == [1, 2, 3]
    assert len({event["id"] for event in watched.noted.events}) == 3
    watched.take()
    watched.run(300)
    assert watched.noted.told == [1, 2, 3]


def test_another_watcher_tells_the_same_event_by_the_same_id(watched: Watched) -> None:
    watched.land("1.tar")
    watched.run(10)
    watched.restart()
    watched.run(10)
    assert watched.noted.told == [1, 1]
    assert watched.noted.events[0] == watched.noted.events[1]


def test_what_was_written_down_and_not_told_is_told(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(event: dict[str, Any]) -> None:
        raise Killed

    watched.land("1.tar")
    with monkeypatch.context() as patch:
        patch.setattr(watched.noted, "tell", killed)
        with pytest.raises(Killed):
            watched.run(10)
    watched.restart()
    watched.run(10)
    assert watched.noted.told == [1]


def test_an_event_that_takes_long_to_tell_is_not_told_again_at_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = watched.noted.tell

    def slow(event: dict[str, Any]) -> None:
        watched.clock.advance(SETTINGS.again)
        real(event)

    monkeypatch.setattr(watched.noted, "tell", slow)
    watched.land("1.tar")
    while not watched.noted.told:
        watched.clock.now = max(watched.clock.now, watched.watch.due)
        watched.watch.step()
    watched.watch.due = watched.clock.now + 1
    watched.run(SETTINGS.again - 5)
    assert watched.noted.told == [1]


def test_runs_that_end_before_they_list_are_given_up_until_the_data_changes(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.land("1.tar")
    watched.run(10)
    for _ in range(SETTINGS.tries + 1):
        watched.noted.ended.append(cast(FlowRun, _Ended("produce digits", "Failed")))
        watched.run(35)
    assert watched.noted.told == [1, 2, 3]
    assert "3 runs ended before they could list the data: produce digits (Failed)" in caplog.text
    told = watched.noted.told
    watched.restart()
    watched.run(600)
    assert watched.noted.told == told
    watched.land("2.tar")
    watched.noted.ended = []
    watched.run(20)
    assert watched.noted.told == [*told, told[-1] + 1]


class _Ended:
    def __init__(self, name: str, state_name: str) -> None:
        self.name, self.state_name = name, state_name


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_what_is_deleted_or_overwritten_since_a_run_listed_starts_the_next(
    watched: Watched, how: str
) -> None:
    watched.land("1.tar")
    watched.land("2.tar")
    watched.take()
    watched.run(30)
    assert watched.noted.told == []
    if how == "deleted":
        store().delete(watched.watch.prefix + "1.tar")
    else:
        watched.land("1.tar", b"2")
    watched.run(15)
    assert watched.noted.told == [1]
    assert watched.noted.events[0]["payload"]["objects"] == (1 if how == "deleted" else 2)


def test_all_data_taken_away_starts_nothing(watched: Watched) -> None:
    watched.land("1.tar")
    watched.take()
    store().delete(watched.watch.prefix + "1.tar")
    watched.run(100)
    assert watched.noted.told == []


def test_a_store_that_is_away_is_asked_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.land("1.tar")

    def away() -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr(watched.watch.listing, "look", away)
        with pytest.raises(StoreError):
            watched.watch.step()
    assert watched.watch.due == watched.clock.now + HOLD
    watched.run(10)
    assert watched.noted.told == [1]


def test_what_a_run_listed_is_not_told_by_who_had_not_seen_all_of_it(watched: Watched) -> None:
    watched.watch.listing = KnownListing(watched.watch.prefix, size=2)
    # A sweep lists one part.
    watched.watch.settings = SETTINGS.model_copy(update={"share": 1e-9})
    for number in range(40):
        watched.land(f"{number:02d}.tar")
    watched.take()
    watched.run(30)
    # Of two parts that changed, and no hint came of it, one is found first.
    watched.land("05.tar", b"another")
    watched.land("33.tar", b"another")
    while not watched.noted.told:
        watched.run(1)
    assert watched.noted.told == [1]
    assert watched.noted.events[0]["payload"]["digest"] != look(watched.watch.prefix).digest
    watched.take()
    watched.run(600)
    assert watched.noted.told == [1]


def test_a_long_listing_is_made_less_often(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = watched.watch.listing.look

    def slow() -> arrivals.Seen:
        watched.clock.advance(60)
        return real()

    monkeypatch.setattr(watched.watch.listing, "look", slow)
    # The first lists all, and says nothing of the others.
    watched.watch.step()
    assert watched.watch.due == watched.clock.now + SETTINGS.sweep
    watched.watch.step()
    assert watched.watch.due == watched.clock.now + 60 / SETTINGS.share
    watched.watch.hasten()
    assert watched.watch.due == watched.clock.now + 120


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelmint.watcher")
