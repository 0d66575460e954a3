"""Every line under watch, hints, and the watchdog: one round after another.

A round begins what is due, each line's step and the watchdog's look in a thread of its own, and
never twice at once: while one lists a million objects, or waits for a service, all others go on.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx

from deployments.watcher.hints import RAW, Hints
from deployments.watcher.line import LineWatch
from deployments.watcher.listing import EVERYTHING
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
THREADS = 1000
"""More than there are lines; a thread is only made when none is free."""
WATCHDOG = "the watchdog"


class Watcher:
    """What is watched: neither a failure nor the slowness of one part stops another.

    Attributes:
        lines: by name; they change in `round` only.
        changed: a line's file that is not as it was when it was imported, which a process does
            once: from now on what is watched may not be what a run would take.
    """

    def __init__(self, settings: Settings, hints: Hints, runs: Runs) -> None:
        self.settings, self.hints, self.runs = settings, hints, runs
        self.lines: dict[str, LineWatch] = {}
        self.changed: Path | None = None
        self.pulse = Pulse(STUCK)
        self._watchdog = Watchdog(settings, runs)
        self._strangers: set[str] = set()
        self._broken: set[str] = set()
        self._swept = self._watched = self._refreshed = time.monotonic()
        self._said: dict[str, str] = {}
        self._files: dict[Path, tuple[int, int]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="watch")
        # What goes on, and of these the lines that were hinted at meanwhile.
        self._going: dict[str, Future[None]] = {}
        self._late: set[str] = set()

    def round(self) -> None:
        """Begin what is due, then wait for a hint, for an end, or for what is due next."""
        self.pulse.beat()
        self._collect()
        if self._swept <= time.monotonic():
            self._swept = time.monotonic() + self.settings.sweep
            self._guarded("lines", self._refresh)
        free = {name: w for name, w in self.lines.items() if name not in self._going}
        for name, watch in free.items():
            if watch.due <= time.monotonic():
                self._begin(name, watch.step)
        if self._watched <= time.monotonic() and WATCHDOG not in self._going:
            self._watched = time.monotonic() + self.settings.watchdog
            self._begin(WATCHDOG, self._watchdog.look)
        waiting = [watch.due for name, watch in free.items() if name not in self._going]
        waiting += [] if WATCHDOG in self._going else [self._watched]
        due = min([self._swept, *waiting])
        for key in self.hints.wait(due - time.monotonic()):
            self._hint(key)

    def close(self) -> None:
        """Wait for what goes on; nothing can be begun after it."""
        self._threads.shutdown()

    def _begin(self, name: str, action: Callable[[], None]) -> None:
        self._going[name] = begun = self._threads.submit(self._guarded, name, action)
        begun.add_done_callback(lambda _: self.hints.wake())

    def _collect(self) -> None:
        """Forget what has ended; what a step may have been too late to see is looked at again."""
        for name in [name for name, begun in self._going.items() if begun.done()]:
            del self._going[name]
            if name in self._late and name in self.lines:
                self.lines[name].hasten()
            self._late.discard(name)

    def _hint(self, key: str) -> None:
        meant = {
            name: watch
            for name, watch in self.lines.items()
            if key == EVERYTHING or key.startswith(watch.prefix)
        }
        for name, watch in meant.items():
            watch.listing.hint(key)
            if name in self._going:
                self._late.add(name)
            else:
                watch.hasten()
        if not meant:
            # The first object of a new bucket, or of a line whose file is new.
            self._swept = min(self._swept, self._refreshed + self.settings.quiet)

    def _refresh(self) -> None:
        """Find the lines there are now, files of lines that cannot be used, and folders that belong
        to no line."""
        self._refreshed = time.monotonic()
        # First, since without a bucket there is nothing to watch.
        folders = list(store().folders(RAW))
        known, broken = catalog.sound()
        self._compare()
        # What a broken file, or a folder that is away, had in it goes on being watched.
        self.lines = (self.lines if broken else {}) | {
            name: self.lines.get(name) or LineWatch(line, self.settings, self.runs)
            for name, line in known.items()
        }
        told = set(map(str, broken))
        for error in sorted(told - self._broken):
            log.error("%s; until it is mended, new data of its line may start nothing", error)
        for error in sorted(self._broken - told):
            log.warning("no longer so: %s", error)
        self._broken = told
        for prefix in folders:
            if all(watch.prefix != prefix for watch in self.lines.values()):
                self._stranger(prefix)

    def _compare(self) -> None:
        """Note when the file of a line was written since it was imported."""
        for module in catalog.modules():
            path = Path(module.__file__ or "")
            # Entry points and folders name it; it may be away while it is replaced.
            found = path.stat() if path.is_file() else None
            written = (found.st_mtime_ns, found.st_size) if found else (0, 0)
            if self._files.setdefault(path, written) != written:
                self.changed = path

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
