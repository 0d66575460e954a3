"""What is known of a prefix is what a listing of all would show, at the price of parts."""

from collections.abc import Iterator
from random import Random

import pytest

from deployments.watcher.listing import EVERYTHING, KnownListing
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
    assert listing.look(0).objects == 40
    return listing


def test_a_hint_lists_the_part_that_it_names_and_the_last(listed: Counted) -> None:
    listing = begun()
    assert listed.afters == [""]
    listed.reset()
    put("17", b"another")
    put("39x")
    listing.hint(f"{PREFIX}17")
    assert listing.look(0) == look(PREFIX)
    # 16-19, then 36-, then the first whose turn it is; each lists one object more to see its end.
    assert listed.afters[:3] == ["35", "15", ""]
    assert listed.objects - 41 <= 5 + 5 + 5
    # What changed may be changing still.
    put("17", b"once more")
    assert listing.look(0) == look(PREFIX)


def test_a_hint_finds_whatever_became_of_its_object(listed: Counted) -> None:
    listing = begun()
    for name in ("00", "03", "04", "39", "0", "1 7", "zz"):
        for content in (b"new", b"overwritten", None):
            if content is None:
                store().delete(PREFIX + name)
            else:
                put(name, content)
            listing.hint(PREFIX + name)
            assert listing.look(0) == look(PREFIX), (name, content)


def test_without_hints_every_part_has_its_turn(listed: Counted) -> None:
    listing = begun()
    for name in ("00", "13", "27"):
        put(name, b"another")
    found = [listing.look(0) == look(PREFIX) for _ in range(10)]
    assert not found[0]
    assert found[-1]
    # With time for it, one look lists all, and no part twice.
    put("31", b"another")
    listed.reset()
    seen = listing.look(60)
    assert sorted(listed.afters) == sorted(set(listed.afters))
    assert seen == look(PREFIX)


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
            assert listing.look(0) == look(PREFIX)
            assert listing.look(0).objects == len(there)
        else:
            listing.look(0)
    for name in there:
        store().delete(PREFIX + name)
    listing.hint(EVERYTHING)
    assert listing.look(0).objects == 0
    # Ranges of what is gone are gone.
    put("1")
    assert listing.look(0).objects == 1


def test_names_that_grow_make_no_small_parts(listed: Counted) -> None:
    listing = begun()
    for number in range(12):
        put(f"17-{number:02d}")
        listing.hint(f"{PREFIX}17-{number:02d}")
        listing.look(0)
    listed.reset()
    listing.hint(EVERYTHING)
    assert listing.look(0) == look(PREFIX)
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
    assert listing.look(0) == look(PREFIX)
    names.append("10x")
    assert listing.look(0) == look(PREFIX)


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
            listing.look(0)
    assert listing.look(0) == look(PREFIX)
