import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tasks import lease as leases
from tasks.lease import Held, LeaseError, holder, lease
from tasks.store import StoreError, store

KEY = "turns/some.lease"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    """The same lease, ten times as fast."""
    for name, seconds in {"SECONDS": 1.5, "BEAT": 0.2, "POLL": 0.03}.items():
        monkeypatch.setattr(leases, name, seconds)


@pytest.fixture
def dead() -> str:
    """A lease whose holder is no more."""
    content = json.dumps({"owner": "dead", "purpose": "run", "beat": 7}).encode()
    store().put(KEY, content)
    return "dead"


def test_one_holder_at_a_time() -> None:
    inside, most, turns = 0, 0, 8
    door = threading.Lock()

    def use() -> None:
        nonlocal inside, most
        with lease(KEY):
            with door:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.05)
            with door:
                inside -= 1

    threads = [threading.Thread(target=use) for _ in range(turns)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert holder(KEY).owner == ""


def test_a_holder_that_lives_keeps_it_for_longer_than_the_lease_lasts() -> None:
    asked: list[Held] = []
    second = lease(KEY, "the second", patience=3.0, waiting=asked.append)
    with lease(KEY, "the first"), pytest.raises(LeaseError, match="is held by another run"):
        second.__enter__()
    assert {held.purpose for held in asked} == {"the first"}
    assert len({held.change for held in asked}) > 3


def test_what_a_dead_holder_left_is_taken_over(dead: str) -> None:
    asked: list[Held] = []
    with lease(KEY, waiting=asked.append):
        assert holder(KEY).owner != dead
    assert {held.owner for held in asked} == {dead}
    assert holder(KEY).owner == ""


def test_a_holder_of_this_machine_that_was_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "SECONDS", 1e9)
    hold = f"from tasks.lease import lease\nwith lease({KEY!r}): print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LeaseError), lease(KEY, patience=1.0):
        pass
    process.kill()
    with lease(KEY):
        assert process.wait() == -signal.SIGKILL
    process.communicate()


def test_a_clock_that_jumps_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(KEY):
        monkeypatch.setattr("time.time", lambda: 4e9)
        with pytest.raises(LeaseError), lease(KEY, patience=0.3):
            pass


def test_a_lease_of_an_earlier_release_is_taken_over() -> None:
    store().put(KEY, json.dumps({"owner": "old", "until": 0.0}).encode())
    with lease(KEY):
        assert holder(KEY).owner not in ("", "old")


def test_a_store_that_is_away_is_waited_for(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[bool] = iter([False] * 20)
    real = holder

    def away(key: str) -> Held:
        if next(answers, True):
            return real(key)
        raise StoreError("away")

    monkeypatch.setattr(leases, "holder", away)
    with lease(KEY):
        assert real(KEY).owner != dead


def test_a_lease_that_another_took_is_not_given_back() -> None:
    with lease(KEY):
        taken = json.dumps({"owner": "other", "purpose": "", "beat": 0}).encode()
        store().put(KEY, taken)
    assert store().get(KEY).content == taken
