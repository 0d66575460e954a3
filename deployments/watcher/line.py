"""One line under watch: when to look at its listing, and when to tell that data arrived."""

import logging
import time

from deployments.watcher.listing import EVERYTHING, KnownListing
from deployments.watcher.runs import Runs
from deployments.watcher.settings import Settings
from models.spec import Line
from tasks import arrivals
from tasks.arrivals import Announcement, Seen
from tasks.snapshot import raw_prefix

log = logging.getLogger("modelmint.watcher")
HOLD = 2.0
"""Seconds between two questions whether the run that has the line's turn is through."""
RARELY = 3600.0


class LineWatch:
    """What this process knows of a line; what must outlive it is in the bucket (tasks.arrivals).

    An event is told for a listing that no run took, once it has been the same for `quiet` seconds,
    or `longest` seconds after it first differed; and never while a run of the line is due or going,
    because that one lists by itself or is followed by one that takes all that came meanwhile.
    """

    def __init__(self, line: Line, settings: Settings, runs: Runs) -> None:
        self.line, self.settings, self.runs = line, settings, runs
        self.prefix = raw_prefix(line.data)
        self.listing = KnownListing(self.prefix)
        self.due = self._soonest = time.monotonic()
        # What a run and another watcher had seen when all was last listed here.
        self._others: tuple[Seen | None, Announcement | None] | None = None
        self._last: Seen | None = None
        self._changed = 0.0
        self._differs: float | None = None
        # When this process last told an event, and what the line's last run had taken then.
        self._told: float | None = None
        self._before: Seen | None = None
        self._patience = settings.again

    def hasten(self) -> None:
        """Something may have changed: look soon."""
        self.due = min(self.due, self._soonest)

    def step(self) -> None:
        """Look now, tell if it is time, and set `due`; raises StoreError or httpx.HTTPError."""
        began = time.monotonic()
        # Whatever goes wrong below, the next try is not at once.
        self.due = began + HOLD
        before = arrivals.taken(self.line.name)
        others = before, arrivals.announced(self.line.name)
        if all_of_it := others != self._others:
            # They may know of changes that no hint told of.
            self.listing.hint(EVERYTHING)
            self._others = others
        seen = self.listing.look()
        now = time.monotonic()
        cost = now - began
        self._soonest = now + max(self.settings.quiet, 2 * cost)
        if seen == before or not seen.objects:
            self._differs, self._told = None, None
            self._rest(now, 0.0 if all_of_it else cost)
            return
        if seen != self._last:
            self._last, self._changed = seen, now
        if self._differs is None:
            self._differs = now
        self.due = self._soonest
        quiet = now - self._changed >= self.settings.quiet
        if quiet or now - self._differs >= self.settings.longest:
            self._tell(seen, before, now, cost)

    def _rest(self, now: float, cost: float) -> None:
        """Nothing is to be told: look for what no hint told of. `cost` is what each look takes."""
        settings = self.settings
        changed = self.listing.sweep(settings.share * settings.sweep)
        swept = time.monotonic()
        pause = max(settings.sweep, (cost + swept - now) / settings.share)
        self.due = max(self._soonest, swept) if changed else swept + pause

    def _tell(self, seen: Seen, before: Seen | None, now: float, cost: float) -> None:
        name = self.line.name
        last = arrivals.announced(name)
        if (arrivals.taken(name), last) != self._others:
            # A run or another watcher was quicker than this look.
            return
        if last is not None and last.settled and last.seen == seen:
            self._rest(now, cost)
            return
        if self._told is not None and self._before == before and now - self._told < self._patience:
            # Its run is being made.
            return
        if name in self.runs.alive():
            self.due = now + max(HOLD, 2 * cost)
            return
        told = self._next(last, seen)
        if told is None:
            return
        self.runs.tell(arrivals.event(self.line, told))
        # Not when it was looked: to tell it may have taken as long as Prefect needs to come back.
        self._told = time.monotonic()
        self._before, self._others = before, (before, told)
        objects, size = seen.objects, seen.size
        log.info("%s: data arrived (%d): %d objects, %d bytes", name, told.number, objects, size)

    def _next(self, last: Announcement | None, seen: Seen) -> Announcement | None:
        """What to tell; None when nothing, or when another watcher told it."""
        name, settings = self.line.name, self.settings
        if last is None or last.seen != seen:
            self._patience = settings.again
            return arrivals.announce(name, seen)
        ended = self.runs.ended_since(name, last.at)
        if len(ended) > settings.tries:
            states = ", ".join(f"{run.name} ({run.state_name})" for run in ended[:3])
            log.error(
                "%s: %d runs ended before they could list the data: %s; the next change of the"
                " data, or a run started by hand, is the next try", name, len(ended), states,
            )  # fmt: skip
            arrivals.settle(name)
            return None
        if self._told is None:
            # Whoever told it may have died before Prefect heard: the same event, by the same id.
            return last
        if not ended:
            log.warning(
                "%s: nothing came of the event %d within %.0f s: is a deployment's trigger on it"
                " switched off? It is told again", name, last.number, self._patience,
            )  # fmt: skip
            self._patience = min(RARELY, 2 * self._patience)
        # By another id: Prefect forgets one that it has heard only after minutes.
        return arrivals.announce(name, seen, since=last.at)
