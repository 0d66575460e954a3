"""A line as a worker serves it: one immutable record, replaced whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from deployments.serving.session import Served
from deployments.serving.state import Canary, LineState, Shadow

PREVIOUS = 20
"""Versions that were in production and are remembered for a rollback."""


class Failed(NamedTuple):
    """A version that is to be served but did not verify when the server started."""

    digest: str
    reason: str


@dataclass(frozen=True)
class Line:
    """A line's versions at one moment, by number."""

    default: str | None = None
    versions: Mapping[str, Served] = field(default_factory=dict)
    failed: Mapping[str, Failed] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)
    """Digests of versions that are to be served and not in memory: opened when asked for."""
    opening: Mapping[str, str] = field(default_factory=dict)
    """Those of versions that another worker has opened, and that this one has not yet."""
    previous: tuple[str, ...] = ()
    canary: Canary | None = None
    shadow: Shadow | None = None

    @property
    def ready(self) -> bool:
        """Whether the line answers when no version is named."""
        return self.default in self.versions

    @property
    def trials(self) -> list[Canary | Shadow]:
        """What is being tried."""
        return [trial for trial in (self.canary, self.shadow) if trial is not None]

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every version that is to be served."""
        failed = {number: one.digest for number, one in self.failed.items()}
        held = {number: one.digest for number, one in self.versions.items()}
        return held | failed | dict(self.idle) | dict(self.opening)

    @property
    def needed(self) -> set[str]:
        """Versions that must answer at once."""
        return self.state.needed

    @property
    def unopened(self) -> dict[str, str]:
        """Digests of versions that are to come into memory before anybody asks for them."""
        needed = self.needed
        return {**self.opening, **{n: d for n, d in self.idle.items() if n in needed}}

    @property
    def unneeded(self) -> list[str]:
        """Versions that were never in production, or were rolled back, and are not being tried."""
        kept = self.needed | set(self.previous)
        return sorted((number for number in self.digests if number not in kept), key=int)

    def answers(self, number: str) -> bool:
        """Whether the version answers, at once or after it was opened."""
        return number in self.versions or number in self.idle

    def without(self, number: str) -> "Line":
        """The line without a version, wherever it is."""
        return replace(
            self,
            versions={n: v for n, v in self.versions.items() if n != number},
            failed={n: f for n, f in self.failed.items() if n != number},
            idle={n: d for n, d in self.idle.items() if n != number},
            opening={n: d for n, d in self.opening.items() if n != number},
        )

    def holding(self, served: Served) -> "Line":
        """The line with a version in memory."""
        line = self.without(served.number)
        return replace(line, versions={**line.versions, served.number: served})

    def resting(self, number: str) -> "Line":
        """The line with a version out of memory."""
        digest = self.versions[number].digest
        line = self.without(number)
        return replace(line, idle={**line.idle, number: digest})

    @property
    def state(self) -> LineState:
        """What of it is remembered."""
        return LineState(
            default=self.default,
            versions=self.digests,
            previous=self.previous,
            canary=self.canary,
            shadow=self.shadow,
        )

    def produced(self, number: str, previous: tuple[str, ...]) -> "Line":
        """The line with this version in production."""
        kept = tuple(n for n in previous if n != number and n in self.digests)
        changed = replace(self, default=number, previous=kept[-PREVIOUS:])
        return changed.without_trials_of(number)

    def without_trials_of(self, number: str) -> "Line":
        """The line once nothing is to be learned of this version any more."""
        return replace(
            self,
            canary=None if self.canary and self.canary.version == number else self.canary,
            shadow=None if self.shadow and self.shadow.version == number else self.shadow,
        )
