"""All lines together: what one part meets stops no other part."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from deployments.watcher.hints import Hints, from_webhook
from deployments.watcher.listing import KnownListing
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from deployments.watcher.watcher import Watcher
from tasks import arrivals
from tasks.store import StoreError, store
from tests.conftest import ROOT
from tests.deployments.watcher.test_hints import burst, filer

SETTINGS = Settings(quiet=0.0, sweep=0.01, share=1.0, watchdog=1e9)


class Told:
    """What is told to Prefect, noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.looked = 0

    def tell(self, event: dict[str, Any]) -> None:
        self.lines.append(event["payload"]["line"])

    def alive(self) -> dict[str, Any]:
        return {}

    def unfinished(self) -> list[Any]:
        self.looked += 1
        return []


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO, "modelmint.watcher")
    return Told()


@pytest.fixture
def watcher(bucket: str, told: Told) -> Iterator[Watcher]:
    watcher = Watcher(SETTINGS, Hints(bucket), cast(Runs, told))
    yield watcher
    watcher.close()


def rounds(watcher: Watcher, count: int = 10, holds: Callable[[], bool] = lambda: True) -> None:
    """So many rounds, and more until it holds."""
    for _ in range(count):
        watcher.round()
    for _ in range(10_000):
        if holds():
            return
        watcher.round()
    raise AssertionError("it never came to be")


def test_every_line_is_watched_and_a_folder_of_none_is_named_once(
    watcher: Watcher, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("raw/digits/1.tar", "raw/flights/1.csv", "raw/nobody/1.csv", "stages/1"):
        store().put(key, b"1")
    rounds(watcher, holds=lambda: len(told.lines) >= 2)
    assert sorted(told.lines) == ["digits", "flights"]
    from_webhook(watcher.hints, filer(f"{watcher.hints.bucket}/raw/nobody/2.csv"))
    store().put("raw/stranger/2.csv", b"1")
    from_webhook(watcher.hints, filer(f"{watcher.hints.bucket}/raw/stranger/2.csv"))
    rounds(watcher, holds=lambda: "raw/stranger/" in caplog.text)
    assert caplog.text.count("raw/nobody/: data of an unknown line, nothing is started") == 1
    assert caplog.text.count("raw/stranger/: data of an unknown line") == 1
    assert "raw/digits/ (digits)" in caplog.text
    assert sorted(told.lines) == ["digits", "flights"]


def test_a_store_that_is_away_is_said_once_and_waited_for(
    watcher: Watcher,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store().put("raw/digits/1.tar", b"1")

    def away(*_: str) -> None:
        raise StoreError("it does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(store()), "folders", away)
        rounds(watcher, 5)
    assert caplog.text.count("it does not answer") == 1
    assert told.lines == []
    rounds(watcher, holds=lambda: bool(told.lines))
    assert "lines: goes on" in caplog.text
    assert told.lines == ["digits"]


def test_a_line_file_with_an_error_stops_no_other_line(
    watcher: Watcher,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.setenv("MODELMINT_LINES", str(tmp_path))
    store().put("raw/digits/1.tar", b"1")
    rounds(watcher, holds=lambda: bool(told.lines))
    assert told.lines == ["digits"]
    assert "broken.py:1: RuntimeError: broken on purpose" in caplog.text
    (tmp_path / "other.py").write_text("line = 1")
    rounds(watcher, holds=lambda: "other.py: binds no Line" in caplog.text)
    (tmp_path / "broken.py").unlink()
    rounds(watcher, holds=lambda: "no longer so: " in caplog.text)
    assert caplog.text.count("broken on purpose; until") == 1


def test_a_bucket_that_is_not_there_yet_is_waited_for(
    watcher: Watcher, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{watcher.hints.bucket}-later"
    monkeypatch.setenv("MODELMINT_BUCKET", name)
    rounds(watcher)
    assert watcher.lines == {}
    store().create_bucket()
    store().put("raw/digits/1.tar", b"1")
    rounds(watcher, holds=lambda: bool(told.lines))
    assert told.lines == ["digits"]


def test_a_hint_of_a_new_bucket_is_followed_at_once(
    bucket: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{bucket}-new"
    monkeypatch.setenv("MODELMINT_BUCKET", name)
    watcher = Watcher(SETTINGS.model_copy(update={"sweep": 1e9}), Hints(name), cast(Runs, told))
    watcher.round()
    store().create_bucket()
    store().put("raw/digits/1.tar", b"1")
    from_webhook(watcher.hints, filer(f"{name}/raw/digits/1.tar"))
    rounds(watcher, holds=lambda: bool(told.lines))
    watcher.close()
    assert told.lines == ["digits"]


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A listing of flights whose answer comes when the event is set."""
    ended, look = threading.Event(), KnownListing.look

    def endless(listing: KnownListing) -> arrivals.Seen:
        seen = look(listing)
        if listing.prefix == "raw/flights/":
            ended.wait()
        return seen

    monkeypatch.setattr(KnownListing, "look", endless)
    yield ended
    ended.set()


def test_a_long_listing_delays_no_other_line_and_not_the_watchdog(
    bucket: str, told: Told, stuck: threading.Event
) -> None:
    store().put("raw/digits/1.tar", b"1")
    store().put("raw/flights/1.csv", b"1")
    settings = SETTINGS.model_copy(update={"watchdog": 0.01})
    watcher = Watcher(settings, Hints(bucket), cast(Runs, told))
    rounds(watcher, holds=lambda: bool(told.lines))
    assert told.lines == ["digits"]
    looked = told.looked
    rounds(watcher, holds=lambda: told.looked > looked)
    assert watcher.pulse.alive
    stuck.set()
    rounds(watcher, holds=lambda: len(told.lines) == 2)
    watcher.close()
    assert told.lines == ["digits", "flights"]


def test_what_is_heard_of_a_line_that_is_being_listed_is_looked_at_after_it(
    bucket: str, told: Told, stuck: threading.Event
) -> None:
    # Without a hint it would be the second look for ever.
    settings = SETTINGS.model_copy(update={"sweep": 1e9})
    watcher = Watcher(settings, Hints(bucket), cast(Runs, told))
    watcher.round()
    watcher.hints.tell("raw/flights/1.csv")
    watcher.round()
    store().put("raw/flights/1.csv", b"1")
    stuck.set()
    rounds(watcher, 1, holds=lambda: told.lines == ["flights"])
    watcher.close()


def test_a_burst_has_each_line_it_is_of_looked_at_once(
    bucket: str, told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks, look = list[str](), KnownListing.look

    def counted(listing: KnownListing) -> arrivals.Seen:
        looks.append(listing.prefix)
        return look(listing)

    monkeypatch.setattr(KnownListing, "look", counted)
    # Without a hint each line is looked at as the watcher begins, and then for ever not.
    settings = SETTINGS.model_copy(update={"sweep": 1e9})
    watcher = Watcher(settings, Hints(bucket), cast(Runs, told))
    events, _ = burst("digits", "flights", "nobody")
    watcher.round()
    rounds(watcher, 1, holds=lambda: len(looks) == len(watcher.lines) > 2)
    store().put("raw/flights/1", b"1")
    store().put("raw/nobody/2", b"1")
    looks.clear()
    for key in events:
        from_webhook(watcher.hints, filer(f"{bucket}/{key}"))
    rounds(watcher, 1, holds=lambda: bool(told.lines) and "raw/digits/" in looks)
    rounds(watcher, holds=lambda: "raw/nobody/: data of an unknown line" in caplog.text)
    watcher.close()
    # That one is asked for its run from now on.
    assert told.lines == ["flights"]
    assert [prefix for prefix in looks if prefix != "raw/flights/"] == ["raw/digits/"]


def test_a_line_file_that_was_edited_is_noticed(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (ROOT / "tests/lines/diabetes.py").read_text()
    path = tmp_path / "edited.py"
    path.write_text(source.replace('name="diabetes"', 'name="edited"'))
    monkeypatch.setenv("MODELMINT_LINES", str(tmp_path))
    rounds(watcher, holds=lambda: "edited" in watcher.lines)
    assert watcher.changed is None
    path.write_text(path.read_text().replace('raw="diabetes/"', 'raw="elsewhere/"'))
    rounds(watcher, holds=lambda: watcher.changed is not None)
    assert watcher.changed == path


def test_without_a_prefect_server_it_says_so(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "deployments.watcher"],
        cwd=ROOT, env=kept | {"PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PREFECT_API_URL names no Prefect server" in done.stderr
