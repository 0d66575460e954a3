import pytest

from models import catalog
from models.digests import bytes_digest
from tasks import arrivals
from tasks.arrivals import Seen, announce, announced, event, settle, take, taken
from tasks.snapshot import list_objects, raw_prefix
from tasks.store import store
from tests.tasks.samples import TRIPS, look

PREFIX = raw_prefix(TRIPS)
SEEN = Seen(digest=bytes_digest(b"1"), objects=1, size=1)


def land(name: str, content: bytes) -> None:
    store().put(PREFIX + name, content)


def test_what_a_run_took_is_what_a_look_sees(bucket: str) -> None:
    # A store may list these in another order than that of the names.
    for name in ("a/b.csv", "a.csv", "a b.csv", "A.csv", "ü/ü.csv", "z.csv"):
        land(name, name.encode())
    take("trips", list_objects(TRIPS))
    assert taken("trips") == look(PREFIX)
    assert look(PREFIX).objects == 6


def test_the_same_bytes_again_are_no_change_and_others_are(bucket: str) -> None:
    land("a.csv", b"1")
    first = look(PREFIX)
    land("a.csv", b"1")
    assert look(PREFIX) == first
    land("a.csv", b"2")
    changed = look(PREFIX)
    assert changed != first
    land("b.csv", b"")
    assert look(PREFIX).objects == 2
    assert look(PREFIX) != changed
    store().delete(PREFIX + "b.csv")
    assert look(PREFIX) == changed
    land("a.csv", b"1")
    assert look(PREFIX) == first


def test_contents_that_change_places_are_a_change(bucket: str) -> None:
    land("a.csv", b"1")
    land("b.csv", b"2")
    before = look(PREFIX)
    land("a.csv", b"2")
    land("b.csv", b"1")
    after = look(PREFIX)
    assert (after.objects, after.size) == (before.objects, before.size)
    assert after.digest != before.digest


def test_nothing_was_taken_or_announced_before_the_first(bucket: str) -> None:
    assert taken("trips") is None
    assert announced("trips") is None
    assert settle("trips") is None
    assert look(PREFIX).objects == 0


def test_of_two_watchers_one_announces(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = announce("trips", SEEN)
    assert first is not None
    assert first.number == 1
    real = arrivals._announced
    slow = real("trips")
    second = announce("trips", SEEN)
    assert second is not None
    assert second.number == 2
    # One that had looked before the other wrote.
    monkeypatch.setattr(arrivals, "_announced", lambda _: slow)
    assert announce("trips", SEEN) is None
    assert real("trips") is not None
    monkeypatch.undo()
    assert announced("trips") == second


def test_told_twice_an_event_has_the_same_id_and_another_number_another(bucket: str) -> None:
    line = catalog.find("digits")
    first, second = announce("digits", SEEN), announce("digits", SEEN)
    assert first is not None
    assert second is not None
    assert event(line, first) == event(line, first)
    assert event(line, first)["id"] != event(line, second)["id"]
    other = catalog.find("flights")
    assert event(line, first)["id"] != event(other, first)["id"]
    assert event(line, first)["payload"] == {"line": "digits", "number": 1, **SEEN.model_dump()}


def test_told_again_it_keeps_the_time_it_was_first_told(bucket: str) -> None:
    first = announce("trips", SEEN)
    assert first is not None
    again = announce("trips", SEEN, since=first.at)
    assert again is not None
    assert (again.number, again.at) == (2, first.at)
    settled = settle("trips")
    assert settled is not None
    assert announced("trips") == settled
    assert settled.settled
