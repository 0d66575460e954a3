"""Limits and usage: exact across workers, days and a full disk."""

import logging
import os
import struct
import threading
from pathlib import Path

import pytest

from deployments.serving.keys import EVERYTHING, Keys, Limits
from deployments.serving.ledger import DAY, Charge, Counts, Ledger
from deployments.serving.protocol import ProtocolError
from tests.deployments.disks import ends, fill, small_disk
from tests.deployments.serving.test_keys import code

NOON = 20_000.5 * DAY


def test_a_rate_is_a_bucket_that_fills_again(tmp_path: Path) -> None:
    now = [1000.0]
    ledger = Ledger(tmp_path, lambda: now[0])
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=Limits(rate=2, burst=3))
    for _ in range(3):
        ledger.admit(key)
    with pytest.raises(ProtocolError) as caught:
        ledger.admit(key)
    assert (caught.value.status, caught.value.retry_after) == (429, 0.5)
    now[0] += 0.5
    ledger.admit(key)
    assert code(ledger.admit, key) == "rate_limited"


def test_whatever_rate_a_key_has_it_may_come_back_within_a_day(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, lambda: 1000.0)
    for rate, seconds in ((1e-310, "86400"), (1e-9, "86400"), (0.001, "1000"), (1e6, "1")):
        limits = Limits(rate=rate, burst=1)
        key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=limits)
        ledger.admit(key)
        with pytest.raises(ProtocolError) as caught:
            ledger.admit(key)
        assert caught.value.retry_seconds == seconds


def test_a_quota_holds_across_workers_and_starts_anew_each_day(tmp_path: Path) -> None:
    now = [20_000 * float(DAY)]
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=Limits(daily_rows=1000))
    workers = [Ledger(tmp_path / "usage", lambda: now[0]) for _ in range(4)]
    allowed, codes = [0] * 4, set[str]()

    def ask(index: int) -> None:
        for _ in range(400):
            try:
                workers[index].charge(key, "digits", 1, 10)
                allowed[index] += 1
            except ProtocolError as error:
                codes.add(error.code)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(allowed), codes) == (1000, {"quota_exceeded"})
    [found] = workers[0].usage(1)
    assert (found["requests"], found["refused"], found["rows"]) == (1000, 600, 1000)
    now[0] += DAY
    workers[2].charge(key, "digits", 1, 10)
    assert [one["rows"] for one in workers[3].usage(2)] == [1, 1000]


def test_a_killed_worker_leaves_its_counts_and_no_lock(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING)
    ledger = Ledger(tmp_path / "usage")
    ledger.charge(key, "digits", 1, 10)
    child = os.fork()
    if child == 0:
        worker = Ledger(tmp_path / "usage")
        with worker._open():
            worker._add(worker._pair(key.id, "digits"), Counts(requests=1, rows=5))
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    ledger.charge(key, "digits", 1, 10)
    assert ledger.usage(1)[0]["rows"] == 7


def test_the_ledger_grows(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING)
    ledger, other = Ledger(tmp_path / "usage"), Ledger(tmp_path / "usage")
    other.charge(key, "line-0", 1, 1)
    for number in range(1100):
        ledger.charge(key, f"line-{number}", 1, 1)
    other.charge(key, "line-1099", 1, 1)
    found = {one["line"]: one["requests"] for one in other.usage(1)}
    assert len(found) == 1100
    assert found["line-0"] == found["line-1099"] == 2


def test_what_is_given_back_after_midnight_is_of_the_day_it_was_charged(tmp_path: Path) -> None:
    now = [NOON]
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=Limits(daily_rows=1000))
    ledger, other = (Ledger(tmp_path / "usage", lambda: now[0]) for _ in range(2))
    day = ledger.charge(key, "digits", 1000, 10)
    now[0] += DAY
    for worker in (ledger, other):  # one that has seen the new day, and one that has not
        worker.add(key, "digits", Counts(rows=-400), day)
        worker.charge(key, "digits", 10, 10)
    assert [one["rows"] for one in ledger.usage(2)] == [20, 200]
    assert code(ledger.charge, key, "digits", 981, 10) == "quota_exceeded"
    next(iter((tmp_path / "usage").glob("2024-10-04.ledger"))).unlink()
    ledger.add(key, "digits", Counts(rows=-10), day)
    assert [one["rows"] for one in ledger.usage(2)] == [20]


def test_midnight_fills_no_bucket(tmp_path: Path) -> None:
    now = [NOON]
    limits = Limits(rate=1 / DAY, burst=3)
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=limits)
    ledger = Ledger(tmp_path / "usage", lambda: now[0])
    for _ in range(3):
        ledger.admit(key)
    now[0] += 2 * DAY  # also when nothing was asked on the day between
    ledger.admit(key)
    assert Ledger(tmp_path / "usage", lambda: now[0]).allows(key)
    ledger.admit(key)
    assert not ledger.allows(key)
    assert ledger.take([Charge(key, "digits", Counts(requests=1))]) == [False]
    assert code(ledger.admit, key) == "rate_limited"


def test_a_day_written_in_the_earlier_form_goes_on(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=Limits(daily_rows=10))
    slots = [
        struct.pack("<64s5q2d", f"{key.id}/{line}".encode(), 2, 1, 7, 20, 30, 0.5, NOON - 9)
        for line in ("", "digits")
    ]
    (tmp_path / "2024-10-04.ledger").write_bytes(b"".join(slots).ljust(1024 * 120, b"\0"))
    ledger = Ledger(tmp_path, lambda: NOON)
    assert ledger.charge(key, "digits", 3, 1) == 20_000
    assert code(ledger.charge, key, "digits", 1, 1) == "quota_exceeded"
    [found] = ledger.usage(1)
    assert [*found.values()][3:] == [3, 2, 10, 21, 30]


def test_refusals_for_the_rate_are_in_the_usage(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING, limits=Limits(rate=1, burst=1))
    ledger = Ledger(tmp_path / "usage", lambda: NOON)
    ledger.admit(key)
    ledger.charge(key, "digits", 5, 10)
    for _ in range(3):
        assert code(ledger.admit, key) == "rate_limited"
    told = {one["line"]: (one["requests"], one["refused"], one["rows"]) for one in ledger.usage(1)}
    assert told == {"digits": (1, 0, 5), "*": (0, 3, 0)}


def test_a_full_disk_ends_no_worker(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING)

    def refused() -> None:
        ledger = Ledger(disk, lambda: NOON)
        assert ledger.take([Charge(key, "digits", Counts(requests=1))]) == [False]
        with pytest.raises(ProtocolError, match="No space left on device") as caught:
            ledger.charge(key, "digits", 1, 1)
        assert (caught.value.status, caught.value.code) == (503, "disk")

    with small_disk(tmp_path / "disk", 1) as disk:
        filler = fill(disk)
        assert ends(refused) == 0
        filler.unlink()
        Ledger(disk, lambda: NOON - DAY).charge(key, "digits", 1, 1)
        # As it was written before: pages are there once they were written to.
        for size in (0, 1024 * 120):
            os.truncate(disk / "2024-10-04.ledger", size)
        fill(disk)
        assert ends(refused) == 0
        filler.unlink()
        Ledger(disk, lambda: NOON).charge(key, "digits", 1, 1)
        assert len(Ledger(disk, lambda: NOON).usage(2)) == 2


def test_room_for_a_day_is_taken_the_day_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [NOON]
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING)
    with small_disk(tmp_path / "disk", 1) as disk:
        ledger = Ledger(disk, lambda: now[0])
        ledger.charge(key, "digits", 1, 1)
        filler = fill(disk)

        def days() -> None:
            now[0] += DAY
            assert Ledger(disk, lambda: now[0]).charge(key, "digits", 1, 1) == 20_001
            ledger.charge(key, "digits", 1, 1)

        assert ends(days) == 0
        now[0] += DAY
        with caplog.at_level(logging.ERROR):
            ledger.charge(key, "digits", 1, 1)
        assert "nothing is answered from 2024-10-06 on" in caplog.text
        now[0] += DAY
        assert code(ledger.charge, key, "digits", 1, 1) == "disk"
        ledger.add(key, "digits", Counts(requests=-1), 20_001)  # what that day charged is there
        filler.unlink()
        ledger.charge(key, "digits", 1, 1)
        assert [one["requests"] for one in ledger.usage(3)] == [1, 2, 1]


def test_a_line_that_finds_no_room_is_refused_and_nothing_else(tmp_path: Path) -> None:
    key, _ = Keys(tmp_path / "keys").create("acme", EVERYTHING)
    with small_disk(tmp_path / "disk", 1) as disk:
        ledger = Ledger(disk, lambda: NOON)
        for number in range(1023):
            ledger.charge(key, f"line-{number}", 1, 1)
        filler = fill(disk)

        def more() -> None:
            assert code(ledger.charge, key, "other", 1, 1) == "disk"
            both = [Charge(key, line, Counts(requests=1)) for line in ("line-0", "other")]
            assert ledger.take(both) == [False, False]
            assert ledger.take(both[:1]) == [True]

        assert ends(more) == 0
        filler.unlink()
        ledger.charge(key, "other", 1, 1)
        told = {one["line"]: one["requests"] for one in ledger.usage(1)}
        assert (told["line-0"], told["other"]) == (2, 1)
