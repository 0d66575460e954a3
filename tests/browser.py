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
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 900


@contextmanager
def page(base_url: str) -> Iterator[Page]:
    """A page of a browser of its own; the test is skipped where no Chromium is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened = browser.new_page(
            base_url=base_url, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
        )
        try:
            yield opened
        finally:
            browser.close()


def picture(page: Page, name: str) -> None:
    """Keep what the page shows as `<name>.png` in the folder MODELMINT_SCREENSHOTS, if set."""
    folder = os.environ.get("MODELMINT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")
