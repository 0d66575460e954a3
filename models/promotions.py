"""Which version of a line is in production, and which were: by whom, when and why.

The record is one object of the bucket, `promotions/<line>.json`. A run and the command line write
it before the model server moves; what the server moves by itself, such as a rollback while the
store is down, it keeps and writes later (`deployments.serving.recorder`).
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from models.digests import Digest
from models.open import Frozen


class Entry(Frozen):
    """A version that went into production, and the one it was judged against."""

    number: int
    digest: Digest
    against: Digest | None = None
    since: float = Field(default_factory=time.time)
    """Seconds since 1970 UTC."""
    kind: Literal["promote", "rollback"] = "promote"
    by: str = ""
    """Who: the tenant and the id of an API key."""
    why: str = ""
    replaced: Digest | None = None
    """The version that was in production until then."""
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def told(self) -> str:
        """When, by whom and why, for people."""
        when = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M UTC")
        by, why = f" by {self.by}" if self.by else "", f": {self.why}" if self.why else ""
        return f"on {when}{by}{why}"


class Promotions(Frozen):
    """All versions of a line that were in production, the serving one last."""

    history: tuple[Entry, ...] = ()

    @property
    def champion(self) -> Entry | None:
        """The version that serves."""
        return self.history[-1] if self.history else None

    def rolled_back(self, digest: Digest) -> Entry | None:
        """What took this version out of production for a fault, if nobody brought it back since."""
        for entry in reversed(self.history):
            if entry.digest == digest:
                return None
            if entry.kind == "rollback" and entry.replaced == digest:
                return entry
        return None

    def with_entry(self, entry: Entry) -> "Promotions":
        """The record with one more entry; the same record when it has that one already."""
        if any(known.id == entry.id for known in self.history):
            return self
        earlier = [known for known in self.history if known.since <= entry.since]
        later = self.history[len(earlier) :]
        before = earlier[-1].digest if earlier else None
        same = [known.against for known in earlier if known.digest == entry.digest]
        # A version that comes back is judged as it was then, so that the same run says the same.
        against = same[-1] if entry.kind == "rollback" and same else before
        against = None if against == entry.digest else against
        entry = entry.model_copy(update={"against": against, "replaced": entry.replaced or before})
        return Promotions(history=(*earlier, entry, *later))


def record_key(line: str) -> str:
    """Key of the line's record in the bucket."""
    return f"promotions/{line}.json"
