"""All lines together: what one part meets stops no other part."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from deployments.watcher.hints import Hints, from_webhook
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from deployments.watcher.watcher import Watcher
from tasks.store import StoreError, store
from tests.conftest import ROOT
from tests.deployments.watcher.test_hints import filer

SETTINGS = Settings(quiet=0.0, sweep=0.01, share=1.0, watchdog=1e9)


class Told:
    """What is told to Prefect, noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, event: dict[str, Any]) -> None:
        self.lines.append(event["payload"]["line"])

    def alive(self) -> dict[str, Any]:
        return {}

    def unfinished(self) -> list[Any]:
        return []


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO, "modelmint.watcher")
    return Told()


@pytest.fixture
def watcher(bucket: str, told: Told) -> Watcher:
    return Watcher(SETTINGS, Hints(bucket), cast(Runs, told))


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


def test_a_line_file_with_an_error_leaves_the_lines_there_were(
    watcher: Watcher,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds(watcher)
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.setenv("MODELMINT_LINES", str(tmp_path))
    store().put("raw/digits/1.tar", b"1")
    rounds(watcher, holds=lambda: bool(told.lines))
    assert told.lines == ["digits"]
    assert "broken on purpose" in caplog.text


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
    assert told.lines == ["digits"]


def test_without_a_prefect_server_it_says_so(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "deployments.watcher"],
        cwd=ROOT, env=kept | {"PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PREFECT_API_URL names no Prefect server" in done.stderr
