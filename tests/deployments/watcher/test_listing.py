"""What is known of a prefix is what a listing of all would show, at the price of parts."""

from collections.abc import Iterator
from random import Random

import pytest

from deployments.watcher.listing import EVERYTHING, MOST, KnownListing
from tasks.store import Listed, Store, StoreError, store
from tests.tasks.samples import look

PREFIX = "raw/many/"
# As the store on a laptop lists them, their folders are in order and the names are not.
FOLDERS = ("", "a/", "a b/", "a-b/", "a/c/", "ü/")


class Counted:
    """What a store was asked to list, and how many objects it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.afters: list[str] = []
        self.objects = 0
        real = Store.list

        def counted(store: Store, prefix: str, after: str = "") -> Iterator[Listed]:
            self.afters.append(after)
            for item in real(store, prefix, after):
                self.objects += 1
                yield item

        monkeypatch.setattr(Store, "list", counted)

    def reset(self) -> None:
        self.afters.clear()
        self.objects = 0


@pytest.fixture
def listed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Counted:
    for number in range(40):
        put(f"{number:02d}")
    return Counted(monkeypatch)


def put(name: str, content: bytes = b"1") -> None:
    store().put(PREFIX + name, content)


def begun(size: int = 4) -> KnownListing:
    """Forty objects in ranges of four, all listed."""
    listing = KnownListing(PREFIX, size)
    assert listing.look().objects == 40
    return listing


def test_a_hint_lists_the_part_that_it_names_and_the_last(listed: Counted) -> None:
    listing = begun()
    assert listed.afters == [""]
    listed.reset()
    put("17", b"another")
    put("39x")
    listing.hint(f"{PREFIX}17")
    assert listing.look() == look(PREFIX)
    # 36 and on, 16 to 19 and one object more to see that end; then what it is compared with.
    assert listed.afters == ["35", "15", ""]
    assert listed.objects == 5 + 5 + 41
    # What changed may be changing still.
    put("17", b"once more")
    assert listing.look() == look(PREFIX)


def test_a_hint_finds_whatever_became_of_its_object(listed: Counted) -> None:
    listing = begun()
    for name in ("00", "03", "04", "39", "0", "1 7", "zz"):
        for content in (b"new", b"overwritten", None):
            if content is None:
                store().delete(PREFIX + name)
            else:
                put(name, content)
            listing.hint(PREFIX + name)
            assert listing.look() == look(PREFIX), (name, content)


def test_without_hints_every_part_has_its_turn(listed: Counted) -> None:
    listing = begun()
    for name in ("00", "13", "27"):
        put(name, b"another")
    assert listing.look() != look(PREFIX)
    found = [listing.sweep(0.0) for _ in range(10)]
    # Nine of ten were left out by the look; one is listed a sweep.
    assert sum(found) >= 3
    assert not listing.sweep(0.0) or listing.look() == look(PREFIX)
    assert listing.look() == look(PREFIX)
    # With time for it, one sweep lists all, and no part twice.
    put("31", b"another")
    listed.reset()
    assert listing.sweep(60.0)
    assert len(listed.afters) == len(set(listed.afters)) == 9
    assert listing.look() == look(PREFIX)
    assert not listing.sweep(60.0)


def test_whatever_comes_and_goes_looks_agree_with_a_listing_of_all(bucket: str) -> None:
    random = Random(5)
    listing = KnownListing(PREFIX, 3)
    there: set[str] = set()
    for turn in range(60):
        for _ in range(random.randrange(6)):
            name = f"{random.choice(FOLDERS)}{random.randrange(30)}"
            if name in there and random.random() < 0.6:
                there.remove(name)
                store().delete(PREFIX + name)
            elif not any(other.startswith(f"{name}/") for other in there):
                there.add(name)
                put(name, str(turn).encode())
            listing.hint(PREFIX + name)
        if turn % 10 == 9:
            listing.hint(EVERYTHING)
            assert listing.look() == look(PREFIX)
            assert listing.look().objects == len(there)
        else:
            listing.look()
    for name in there:
        store().delete(PREFIX + name)
    listing.hint(EVERYTHING)
    assert listing.look().objects == 0
    # Ranges of what is gone are gone.
    put("1")
    assert listing.look().objects == 1


def test_names_that_grow_make_no_small_parts(listed: Counted) -> None:
    listing = begun()
    for number in range(12):
        put(f"17-{number:02d}")
        listing.hint(f"{PREFIX}17-{number:02d}")
        listing.look()
    listed.reset()
    listing.hint(EVERYTHING)
    assert listing.look() == look(PREFIX)
    assert len(listed.afters) - 1 <= 40 / 4 + 12 / 4


def test_a_store_that_lists_in_no_order_is_listed_whole(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02d}" for number in range(20)]
    Random(3).shuffle(names)

    def shuffled(_: Store, prefix: str, after: str = "") -> Iterator[Listed]:
        assert not after
        return (Listed(prefix + name, 1, "1") for name in names)

    monkeypatch.setattr(Store, "list", shuffled)
    listing = KnownListing(PREFIX, 4)
    assert listing.look() == look(PREFIX)
    names.append("10x")
    assert listing.look() == look(PREFIX)


def test_a_folder_that_comes_before_names_as_a_filer_lists_it_is_found(bucket: str) -> None:
    for number in range(20):
        put(f"2026-{number:02d}")
    listing = KnownListing(PREFIX, 4)
    listing.look()
    put("2026/12")
    listing.hint(f"{PREFIX}2026/12")
    assert listing.look() == look(PREFIX)
    store().delete(PREFIX + "2026-07")
    put("2026/13")
    listing.hint(EVERYTHING)
    assert listing.look() == look(PREFIX)


def test_the_last_of_a_range_may_go(bucket: str) -> None:
    for number in range(20):
        put(f"a-{number:02d}")
    listing = KnownListing(PREFIX, 4)
    listing.look()
    for number in range(3, 20, 4):
        store().delete(f"{PREFIX}a-{number:02d}")
        listing.hint(f"{PREFIX}a-{number:02d}")
        assert listing.look() == look(PREFIX)


def test_very_many_hints_are_one_of_everything(listed: Counted) -> None:
    listing = begun()
    put("00", b"another")
    for number in range(MOST + 10):
        listing.hint(f"{PREFIX}39{number}")
    assert listing.look() == look(PREFIX)


def test_the_marker_of_a_folder_is_one_object(listed: Counted) -> None:
    listing = begun()
    put("")
    listed.reset()
    listing.hint(PREFIX)
    assert listing.look() == look(PREFIX)
    assert len(listed.afters) == 3


def test_what_could_not_be_listed_is_listed_at_the_next_look(
    listed: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = begun()
    put("05", b"another")
    put("17", b"another")
    real = Store.list

    def failing(store: Store, prefix: str, after: str = "") -> Iterator[Listed]:
        if after == "03":
            raise StoreError("it does not answer")
        return real(store, prefix, after)

    listing.hint(f"{PREFIX}05")
    listing.hint(f"{PREFIX}17")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "list", failing)
        with pytest.raises(StoreError):
            listing.look()
    assert listing.look() == look(PREFIX)
