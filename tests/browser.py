"""Debian's Chromium, headless; and pictures for the documentation, when they are asked for.

    MODELMINT_SCREENSHOTS=docs python -m pytest tests/test_prefect_yaml.py

writes the pictures in the folder anew.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 900


@contextmanager
def browser(*options: str) -> Iterator[Browser]:
    """A browser with the options; the test is skipped where no Chromium is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *options])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def watched(started: Browser, url: str) -> Iterator[Page]:
    """A page newly opened; fails on what its script throws or blocks."""
    opened = started.new_page(viewport={"width": 1100, "height": 1400})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))

    def note(said: ConsoleMessage) -> None:
        # A refusal the page shows is told to the console as well.
        if said.type == "error" and "status of 4" not in said.text:
            problems.append(said.text)

    opened.on("console", note)
    opened.goto(url)
    yield opened
    opened.close()
    assert not problems


@contextmanager
def page(base_url: str) -> Iterator[Page]:
    """A page of a browser of its own."""
    with browser() as started:
        yield started.new_page(
            base_url=base_url, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
        )


def picture(page: Page, name: str) -> None:
    """Keep what the page shows as `<name>.png` in the folder MODELMINT_SCREENSHOTS, if set."""
    folder = os.environ.get("MODELMINT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")
