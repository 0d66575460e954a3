"""Whose turn it is, and who gives way where there is no room."""

import time
from concurrent.futures import Future
from typing import Any

import pytest

from deployments.serving import turns as waiting
from deployments.serving.protocol import ProtocolError
from deployments.serving.turns import Asked, Turns


class Line:
    """Requests by name, put into `Turns`."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.names: dict[Future[Any], str] = {}

    def put(self, key: str, name: str, size: int = 1, seconds: float = 60) -> dict[str, int]:
        answer: Future[Any] = Future()
        self.names[answer] = name
        asked = Asked(lambda: None, size, time.monotonic() + seconds)
        found = self.turns.put(key, answer, asked, 0.5)
        return {self.names[one.answer]: one.error.status for one in found}

    def rest(self) -> list[str]:
        found = iter(self.turns.take, None)
        return [self.names[one[0]] for one in found if one]


def test_keys_take_turns_and_each_is_served_in_order() -> None:
    line = Line()
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert line.put(name[0], name) == {}
    assert line.rest() == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert line.turns.length == 0


def test_where_too_many_wait_the_key_with_most_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 4)
    line = Line()
    for name in ("a1", "a2", "a3", "a4"):
        assert line.put("a", name, size=1) == {}
    assert line.put("a", "a5") == {"a5": 429}
    assert line.put("b", "b1", size=1000) == {"a4": 429}
    assert line.put("b", "b2") == {"a3": 429}
    assert line.put("b", "b3") == {"b3": 429}
    assert line.rest() == ["a1", "b1", "a2", "b2"]


def test_nobody_gives_way_for_one_that_does_not_fit_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_BYTES", 128)
    line = Line()
    for key in "ab":
        for number in range(6):
            assert line.put(key, f"{key}{number}", size=10) == {}
    assert line.put("c", "c0", size=50) == {"c0": 429}
    assert len(line.rest()) == 12


def test_where_bytes_are_short_the_key_with_most_of_them_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_BYTES", 100)
    line = Line()
    for name in ("a1", "a2", "a3"):  # few, and large
        assert line.put("a", name, size=30) == {}
    for name in ("b1", "b2", "b3", "b4", "b5"):
        assert line.put("b", name, size=2) == {}
    assert line.put("a", "a4", size=1) == {"a4": 429}
    assert line.put("b", "b6", size=20) == {"a3": 429}
    assert line.rest() == ["a1", "b1", "a2", "b2", "b3", "b4", "b5", "b6"]
    assert line.put("a", "alone", size=1000) == {}


def test_the_late_make_room_and_the_dropped_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 2)
    line = Line()
    line.put("a", "late", seconds=0)
    line.put("a", "dropped")
    assert line.put("a", "next") == {"late": 504}
    dropped = next(one for one, name in line.names.items() if name == "dropped")
    for _ in range(2):
        line.turns.drop("a", dropped)
    assert line.turns.length == 1
    assert line.put("a", "last") == {}
    assert line.rest() == ["next", "last"]


def test_who_is_refused_hears_when_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 3)
    line = Line()
    for name in ("1", "2", "3"):
        line.put("a", name)
    answer: Future[Any] = Future()
    [refused] = line.turns.put("a", answer, Asked(lambda: None, 1, time.monotonic() + 60), 0.5)
    assert refused.answer is answer
    assert isinstance(refused.error, ProtocolError)
    assert (refused.error.code, refused.error.retry_after) == ("overloaded", 2)
