"""Whose turn it is, and who gives way where there is no room."""

from dataclasses import dataclass

import pytest

from deployments.serving import turns as waiting
from deployments.serving.turns import Refused, Turn, Turns


@dataclass(slots=True, eq=False)
class Named(Turn):
    """A request called by its tenant, key and number, such as `a1.2`."""

    name: str


class Line:
    """Requests by name, put into `Turns` at second 0."""

    def __init__(self) -> None:
        self.turns: Turns[Named] = Turns("here")
        self.known: dict[str, Named] = {}

    def put(self, *names: str, size: int = 1, until: float = 60, held: int = 0) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in names:
            key = name.partition(".")[0]
            one = self.known[name] = Named((key[0], key), size, until, name)
            gone = self.turns.put(one, 0.0, 0.5, held)
            found |= {other.name: error.status for other, error in gone}
        return found

    def rest(self, unfit: str = "") -> list[str]:
        return [one.name for one in self.turns.take(lambda one: one.name not in unfit.split())]


def test_tenants_take_turns_and_so_do_the_keys_of_each() -> None:
    line = Line()
    assert line.put("a1.1", "a1.2", "a1.3", "a2.1", "a2.2", "b1.1", "b1.2", "c1.1") == {}
    assert line.turns.length == 8
    assert line.rest() == ["a1.1", "b1.1", "c1.1", "a2.1", "b1.2", "a1.2", "a2.2", "a1.3"]
    assert line.turns.length == 0
    assert line.rest() == []


def test_whose_request_was_taken_goes_to_the_end_of_the_line() -> None:
    line = Line()
    line.put("a1.1", "a1.2", "a2.1", "b1.1", "b1.2")
    assert next(line.turns.take()).name == "a1.1"
    assert next(line.turns.take()).name == "b1.1"
    line.put("a1.3", "c1.1")
    assert line.rest() == ["a2.1", "b1.2", "c1.1", "a1.2", "a1.3"]


def test_what_does_not_fit_stays_first_with_those_of_its_key_behind_it() -> None:
    line = Line()
    line.put("a1.1", "a1.2", "a2.1", "a2.2", "b1.1", "b1.2", "c1.1")
    assert line.rest(unfit="a1.1 b1.2") == ["a2.1", "b1.1", "c1.1", "a2.2"]
    assert line.rest() == ["b1.2", "a1.1", "a1.2"]


def test_it_is_asked_of_each_but_once_whether_it_fits() -> None:
    line = Line()
    line.put(*(f"a{number}.1" for number in range(100)), *(f"b1.{n}" for n in range(100)))
    asked: list[str] = []

    def fits(one: Named) -> bool:
        asked.append(one.name)
        return one.who[0] == "b"

    assert [one.name for one in line.turns.take(fits)] == [f"b1.{n}" for n in range(100)]
    assert len(asked) == len(set(asked)) == 200


def test_where_too_many_wait_the_tenant_with_most_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_QUEUED", 4)
    line = Line()
    assert line.put("a1.1", "a2.1", "a3.1", "a4.1") == {}
    assert line.put("a1.2") == {"a1.2": 429}
    # Ever more keys are worth no more to a tenant than one.
    assert line.put("a5.1") == {"a5.1": 429}
    assert line.put("b1.1", size=1000) == {"a4.1": 429}
    assert line.put("b1.2") == {"a3.1": 429}
    assert line.put("b1.3") == {"b1.3": 429}
    assert line.rest() == ["a1.1", "b1.1", "a2.1", "b1.2"]


def test_of_a_tenant_the_key_with_most_gives_way_to_another_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_QUEUED", 4)
    line = Line()
    assert line.put("a1.1", "a1.2", "a1.3", "b1.1") == {}
    assert line.put("a2.1") == {"a1.3": 429}
    assert line.put("a2.2") == {"a2.2": 429}
    assert line.rest() == ["a1.1", "b1.1", "a2.1", "a1.2"]


def test_nobody_gives_way_for_one_that_does_not_fit_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "QUEUED_BYTES", 128)
    line = Line()
    names = [f"{tenant}1.{number}" for number in range(6) for tenant in "ab"]
    assert line.put(*names, size=10) == {}
    assert line.put("c1.1", size=50) == {"c1.1": 429}
    assert line.rest() == names


def test_where_bytes_are_short_the_tenant_with_most_of_them_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "QUEUED_BYTES", 100)
    line = Line()
    assert line.put("a1.1", "a1.2", "a1.3", size=30) == {}  # few, and large
    assert line.put("a1.4", size=0) == {}
    assert line.put("b1.1", "b1.2", "b1.3", "b1.4", "b1.5", size=2) == {}
    assert line.put("a1.5", size=1) == {"a1.5": 429}
    # What holds no bytes is of no help, and needs none.
    assert line.put("b1.6", size=20) == {"a1.3": 429}
    assert line.put("b1.7", size=0) == {}
    assert line.rest() == [
        "a1.1", "b1.1", "a1.2", "b1.2", "a1.4", "b1.3", "b1.4", "b1.5", "b1.6", "b1.7",
    ]  # fmt: skip
    assert line.put("a1.6", size=1000) == {}  # however large, alone


def test_bytes_that_are_held_elsewhere_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUEUED_BYTES", 100)
    line = Line()
    assert line.put("a1.1", size=1000) == {}
    assert line.rest() == ["a1.1"]
    assert line.put("a1.2", size=10, held=95) == {"a1.2": 429}
    assert line.put("a1.3", size=60, held=0) == {}
    assert line.put("b1.1", size=30, held=20) == {"a1.3": 429}


def test_the_rest_of_what_was_let_in_is_let_in_and_never_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_QUEUED", 3)
    line = Line()
    assert line.put("a1.1", "a1.2", "a1.3") == {}
    for name in ("rest", "more"):
        again = Named(("a", "a1"), 0, 60, name, admitted=True)
        assert line.turns.put(again, 0.0, 0.5) == []
    assert line.put("b1.1") == {"a1.3": 429, "a1.2": 429, "a1.1": 429}
    assert line.put("c1.1") == {"c1.1": 429}
    assert line.rest() == ["rest", "b1.1", "more"]


def test_the_late_make_room_and_the_dropped_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_QUEUED", 2)
    line = Line()
    line.put("a1.late", until=0)
    line.put("a1.dropped")
    assert line.put("a1.next") == {"a1.late": 504}
    for _ in range(2):
        line.turns.drop(line.known["a1.dropped"])
    assert line.turns.length == 1
    assert line.put("a1.last") == {}
    assert line.rest() == ["a1.next", "a1.last"]
    line.turns.drop(line.known["a1.last"])
    assert line.turns.length == 0


def test_all_are_forgotten_at_once() -> None:
    line = Line()
    line.put("a1.1", "a2.1", "b1.1")
    assert {one.name for one in line.turns.clear()} == {"a1.1", "a2.1", "b1.1"}
    assert (line.turns.length, line.rest()) == (0, [])


def test_who_is_refused_hears_when_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_QUEUED", 3)
    line = Line()
    line.put("a1.1", "a1.2", "a1.3")
    one = Named(("a", "a1"), 1, 60, "a1.4")
    [refused] = line.turns.put(one, 0.0, 0.5)
    assert isinstance(refused, Refused)
    assert refused.turn is one
    assert (refused.error.code, refused.error.retry_after) == ("overloaded", 2)
    assert refused.error.message == "too many requests wait here: ask again later"
