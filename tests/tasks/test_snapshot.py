import hashlib

import pytest

from tasks.snapshot import EmptyPrefixError, list_objects, raw_objects, raw_prefix, take_snapshot
from tasks.store import MissingError, store
from tests.conftest import new_bucket
from tests.tasks.conftest import snapshot
from tests.tasks.samples import TRIPS

PREFIX = raw_prefix(TRIPS)


def land(**objects: bytes) -> None:
    for name, content in objects.items():
        store().put(f"{PREFIX}{name}.csv", content)


def test_only_new_objects_are_hashed(bucket: str) -> None:
    land(a=b"1", b=b"2")
    assert snapshot(TRIPS).observed == {"hashed": 2, "reused": 0}
    land(c=b"3")
    assert snapshot(TRIPS).observed == {"hashed": 1, "reused": 2}
    assert snapshot(TRIPS).observed == {"hashed": 0, "reused": 3}


def test_an_overwritten_object_is_hashed_again(bucket: str) -> None:
    land(a=b"1", b=b"2")
    before = snapshot(TRIPS)
    land(a=b"9")
    after = snapshot(TRIPS)
    assert after.observed == {"hashed": 1, "reused": 1}
    assert after.digest != before.digest
    hashes = {item.name: item.sha256 for item in raw_objects(after)}
    assert hashes == {
        "a.csv": hashlib.sha256(b"9").hexdigest(),
        "b.csv": hashlib.sha256(b"2").hexdigest(),
    }


def test_the_digest_is_of_names_and_contents_in_whatever_order_they_came(bucket: str) -> None:
    land(a=b"1", b=b"2", c=b"3")
    at_once = snapshot(TRIPS)
    with new_bucket():
        land(c=b"3", a=b"other")
        snapshot(TRIPS)
        land(b=b"2", a=b"1")
        assert snapshot(TRIPS).digest == at_once.digest
    with new_bucket():
        land(a=b"2", b=b"1", c=b"3")
        assert snapshot(TRIPS).digest != at_once.digest


def test_a_removed_object_is_gone_from_the_snapshot(bucket: str) -> None:
    land(a=b"1")
    alone = snapshot(TRIPS)
    land(b=b"22")
    both = snapshot(TRIPS)
    assert (both.objects, both.size) == (2, 3)
    store().delete(f"{PREFIX}b.csv")
    assert snapshot(TRIPS).digest == alone.digest


def test_a_lost_record_of_the_last_snapshot_costs_time_only(bucket: str) -> None:
    land(a=b"1", b=b"2")
    first = snapshot(TRIPS)
    for item in list(store().list("tables/")):
        store().delete(item.key)
    again = snapshot(TRIPS)
    assert again.digest == first.digest
    assert again.observed == {"hashed": 2, "reused": 0}


def test_an_empty_prefix_says_what_to_do(bucket: str) -> None:
    store().put("raw/trips-of-others/a.csv", b"1")
    with pytest.raises(EmptyPrefixError, match=f"s3://{bucket}/raw/trips/ is empty: land data"):
        list_objects(TRIPS)


def test_an_object_overwritten_after_the_listing_is_an_error(bucket: str) -> None:
    land(a=b"1", b=b"2")
    listing = list_objects(TRIPS)
    land(b=b"3")
    with pytest.raises(MissingError, match=r"b\.csv was overwritten since it was listed"):
        take_snapshot.bare(PREFIX, listing)


def test_a_raw_object_gives_what_the_snapshot_saw_or_an_error(bucket: str) -> None:
    land(a=b"1")
    (item,) = raw_objects(snapshot(TRIPS))
    assert item.read(PREFIX) == b"1"
    land(a=b"2")
    with pytest.raises(MissingError, match=r"a\.csv"):
        item.read(PREFIX)
