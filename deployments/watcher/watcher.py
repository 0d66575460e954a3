"""Every line under watch, hints, and the watchdog: one round after another in one thread."""

import logging
import time
from collections.abc import Callable

import httpx

from deployments.watcher.hints import EVERYTHING, RAW, Hints
from deployments.watcher.line import LineWatch
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from deployments.watcher.watchdog import Watchdog
from deployments.watcher.webhook import Pulse
from models import catalog
from tasks.store import MissingError, StoreError, store

log = logging.getLogger("modelmint.watcher")
STUCK = 900.0
"""Seconds without a round after which the watcher says that it is not well."""
MOST_STRANGERS = 1000


class Watcher:
    """What is watched: a failure of one part never stops another."""

    def __init__(self, settings: Settings, hints: Hints, runs: Runs) -> None:
        self.settings, self.hints, self.runs = settings, hints, runs
        self.lines: dict[str, LineWatch] = {}
        self.pulse = Pulse(STUCK)
        self._watchdog = Watchdog(settings, runs)
        self._strangers: set[str] = set()
        self._swept = self._watched = self._refreshed = time.monotonic()
        self._said: dict[str, str] = {}

    def round(self) -> None:
        """Do what is due, then wait for a hint or for what is due next."""
        self.pulse.beat()
        if self._swept <= time.monotonic():
            self._swept = time.monotonic() + self.settings.sweep
            self._guarded("lines", self._refresh)
        for name, watch in self.lines.items():
            if watch.due <= time.monotonic():
                self._guarded(name, watch.step)
        if self._watched <= time.monotonic():
            self._watched = time.monotonic() + self.settings.watchdog
            self._guarded("watchdog", self._watchdog.look)
        due = min([self._swept, self._watched, *(watch.due for watch in self.lines.values())])
        for prefix in self.hints.wait(due - time.monotonic()):
            self._hint(f"{RAW}{prefix}")

    def _hint(self, prefix: str) -> None:
        meant = [w for w in self.lines.values() if prefix in (w.prefix, f"{RAW}{EVERYTHING}")]
        for watch in meant:
            watch.hint()
        if not meant:
            # The first object of a new bucket, or of a line whose file is new.
            self._swept = min(self._swept, self._refreshed + self.settings.quiet)

    def _refresh(self) -> None:
        """Find the lines there are now, and folders that belong to none of them."""
        self._refreshed = time.monotonic()
        # First, since without a bucket there is nothing to watch.
        folders = list(store().folders(RAW))
        known = catalog.lines()
        self.lines = {
            name: self.lines.get(name) or LineWatch(line, self.settings, self.runs)
            for name, line in known.items()
        }
        for prefix in folders:
            if all(watch.prefix != prefix for watch in self.lines.values()):
                self._stranger(prefix)

    def _stranger(self, prefix: str) -> None:
        if prefix not in self._strangers and len(self._strangers) < MOST_STRANGERS:
            self._strangers.add(prefix)
            log.warning(
                "%s: data of an unknown line, nothing is started; there are %s",
                store().uri(prefix), ", ".join(f"{w.prefix} ({n})" for n, w in self.lines.items()),
            )  # fmt: skip

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """Do it; what fails is said once and tried again, and stops nothing else."""
        try:
            action()
        except (StoreError, MissingError, httpx.HTTPError) as error:
            self._say(name, f"{type(error).__name__}: {error}")
        except Exception as error:  # a line's file, say, may have any error in it
            log.debug("", exc_info=True)
            self._say(name, repr(error))
        else:
            if self._said.pop(name, ""):
                log.warning("%s: goes on", name)

    def _say(self, name: str, problem: str) -> None:
        if not self._said.get(name):
            log.error("%s: %s; tried again until it goes", name, problem)
        self._said[name] = problem
