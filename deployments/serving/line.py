"""A line as a worker serves it: one immutable record, replaced whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from deployments.serving.session import Served
from deployments.serving.state import LineState

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
    previous: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the line answers when no version is named."""
        return self.default in self.versions

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every version that is to be served."""
        failed = {number: one.digest for number, one in self.failed.items()}
        return {number: one.digest for number, one in self.versions.items()} | failed

    @property
    def state(self) -> LineState:
        """What of it is remembered."""
        return LineState(default=self.default, versions=self.digests, previous=self.previous)

    def produced(self, number: str, previous: tuple[str, ...]) -> "Line":
        """The line with this version in production."""
        kept = tuple(n for n in previous if n != number and n in self.digests)
        return replace(self, default=number, previous=kept[-PREVIOUS:])
