"""What one worker opens keeps nothing else waiting: two repositories stand for two workers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deployments.serving import following
from deployments.serving import repository as repository_module
from deployments.serving.memory import EACH
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from models.promotions import Entry
from tests.deployments.serving.test_control import eventually


def test_a_version_that_another_worker_opens_slowly_keeps_no_rollback_waiting(
    table: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {number: table(float(number)) for number in "123"}
    for number, version in versions.items():
        version.place(tmp_path, number)
    go, began = threading.Event(), threading.Event()
    real = following.open_proven

    def slowly(*given: Any) -> Any:
        if threading.current_thread().name == "open" and "3" in given:
            began.set()
            assert go.wait(60)
        return real(*given)

    monkeypatch.setattr(following, "open_proven", slowly)
    asked, other = Repository(tmp_path, here), Repository(tmp_path, here)
    with ThreadPoolExecutor(1) as loading:
        try:
            for repository in (asked, other):
                repository.restore()
            other.follow()
            for number in "12":
                asked.load("air-time", number, versions[number].digest)
                asked.set_default("air-time", number)
            loaded = loading.submit(asked.load, "air-time", "3", versions["3"].digest)
            assert began.wait(60)
            entry = Entry(number=0, digest="0" * 64, kind="rollback", by="x", why="")
            served, _ = asked.roll_back("air-time", None, entry)
            assert served.number == other.default("air-time").number == "1"
            # What is promoted or loaded elsewhere meanwhile forgets nothing of it.
            assert not loaded.done()
            assert "3" in other.state.lines["air-time"].versions
        finally:
            go.set()
        assert loaded.result(60).number == "3"
        assert other.get("air-time", "3").digest == versions["3"].digest
        for repository in (asked, other):
            repository.close()


def test_a_version_that_another_worker_cannot_open_is_told(
    table: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = table()
    version.place(tmp_path, "1")
    real = following.open_proven

    def damaged(*given: Any) -> Any:
        if threading.current_thread().name == "open":
            raise ProtocolError(422, "its disk is damaged", "unfit_version")
        return real(*given)

    monkeypatch.setattr(following, "open_proven", damaged)
    asked, other = Repository(tmp_path, here), Repository(tmp_path, here)
    for repository in (asked, other):
        repository.restore()
    other.follow()
    with pytest.raises(ProtocolError, match="its disk is damaged") as behind:
        asked.load("air-time", "1", version.digest)
    assert (behind.value.status, behind.value.code) == (503, "workers_behind")
    with pytest.raises(ProtocolError) as failed:
        other.get("air-time", "1")
    assert failed.value.code == "version_failed"
    for repository in (asked, other):
        repository.close()


def test_a_loaded_version_is_there_while_another_is_opened(
    table: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {number: table(float(number)) for number in "123"}
    repository = Repository(tmp_path, here, memory=0)
    repository.restore()
    for number, version in versions.items():
        version.place(tmp_path, number)
        repository.load("air-time", number, version.digest)
        repository.set_default("air-time", number)
    assert set(repository.line("air-time").idle) == {"1"}
    go, began = threading.Event(), threading.Event()
    real = repository_module.open_proven

    def slowly(*given: Any) -> Any:
        began.set()
        assert go.wait(60)
        return real(*given)

    monkeypatch.setattr(repository_module, "open_proven", slowly)
    with ThreadPoolExecutor(1) as waking:
        woken = waking.submit(repository.wake, "air-time", "1")
        try:
            assert began.wait(60)
            assert repository.wake("air-time", "3").number == "3"
            entry = Entry(number=0, digest="0" * 64, kind="rollback", by="x", why="")
            assert repository.roll_back("air-time", None, entry)[0].number == "2"
        finally:
            go.set()
        assert woken.result(60).number == "1"
    repository.close()


def test_a_rollback_waits_for_no_version_that_comes_back_into_memory_by_it(
    table: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {number: table(float(number)) for number in "123"}
    go, opened = threading.Event(), list[str]()
    real = following.open_proven

    def slowly(*given: Any) -> Any:
        if rolled.is_set():
            opened.append(f"{threading.current_thread().name} {given[3]}")
            assert go.wait(60)
        return real(*given)

    rolled = threading.Event()
    for module in (following, repository_module):
        monkeypatch.setattr(module, "open_proven", slowly)
    asked, other = (Repository(tmp_path, here, memory=int(2.5 * EACH)) for _ in range(2))
    for repository in (asked, other):
        repository.restore()
        repository.follow()
    entry = Entry(number=0, digest="0" * 64, kind="rollback", by="x", why="")
    try:
        for number, version in versions.items():
            version.place(tmp_path, number)
            asked.load("air-time", number, version.digest)
            asked.set_default("air-time", number)
        assert [set(one.line("air-time").idle) for one in (asked, other)] == [{"1"}, {"1"}]
        rolled.set()
        assert asked.roll_back("air-time", None, entry)[0].number == "2"
        assert other.default("air-time").number == "2"
        # What would be next is opened by all of them, once, and whoever asks for it waits for that.
        assert eventually(lambda: opened == ["open 1"] * 2)
        with ThreadPoolExecutor(1) as waking:
            woken = waking.submit(other.wake, "air-time", "1")
            go.set()
            assert woken.result(60).number == "1"
        assert eventually(
            lambda: all("1" in one.line("air-time").versions for one in (asked, other))
        )
        assert asked.roll_back("air-time", None, entry)[0].number == "1"
        assert other.default("air-time").number == "1"
        assert opened == ["open 1"] * 2
    finally:
        go.set()
        for repository in (asked, other):
            repository.close()
