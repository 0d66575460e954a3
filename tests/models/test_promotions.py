import json

from models.promotions import Entry, Promotions

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def promoted(number: int, digest: str, since: float) -> Entry:
    return Entry(number=number, digest=digest, since=since, by="ada (key 1)", why="better")


def back(number: int, digest: str, replaced: str, since: float) -> Entry:
    return Entry(
        number=number, digest=digest, replaced=replaced, since=since, kind="rollback", by="bob"
    )


def record(*entries: Entry) -> Promotions:
    found = Promotions()
    for entry in entries:
        found = found.with_entry(entry)
    return found


def test_a_rolled_back_version_is_one_until_it_is_brought_back() -> None:
    found = record(promoted(1, ONE, 1), promoted(2, TWO, 2), back(1, ONE, TWO, 86_400))
    assert found.champion is not None
    assert (found.champion.digest, found.champion.against) == (ONE, None)
    why = found.rolled_back(TWO)
    assert why is not None
    assert why.told == "on 1970-01-02 00:00 UTC by bob"
    assert found.rolled_back(ONE) is None
    assert found.rolled_back(THREE) is None
    # Others may come and go meanwhile.
    found = found.with_entry(promoted(3, THREE, 90_000))
    assert found.rolled_back(TWO) is not None
    assert found.with_entry(promoted(2, TWO, 90_001)).rolled_back(TWO) is None


def test_an_entry_is_recorded_once_and_where_it_belongs() -> None:
    late = back(1, ONE, TWO, 3)
    found = record(promoted(1, ONE, 1), promoted(2, TWO, 2), promoted(3, THREE, 4))
    assert [entry.against for entry in found.history] == [None, ONE, TWO]
    mended = found.with_entry(late)
    assert [entry.number for entry in mended.history] == [1, 2, 1, 3]
    assert mended.champion == found.champion
    assert mended.rolled_back(TWO) is not None
    assert mended.with_entry(late) is mended


def test_records_of_the_first_release_are_read() -> None:
    old = {"history": [{"number": 1, "digest": ONE, "against": None, "since": 1.5}]}
    found = Promotions.model_validate_json(json.dumps(old))
    assert found.champion is not None
    assert (found.champion.number, found.champion.kind, found.champion.by) == (1, "promote", "")
