"""What is to be served: the content of `state.json`, which every worker follows."""

import hashlib
import time
import uuid
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from deployments.serving.disk import parsed
from deployments.serving.folder import LINE, NUMBER
from models.digests import Digest
from models.open import Frozen
from models.promotions import Entry

STATE_FILE = "state.json"
LineName = Annotated[str, StringConstraints(pattern=LINE)]
Number = Annotated[str, StringConstraints(pattern=NUMBER)]


class Canary(Frozen):
    """A version that answers a share of the requests that name no version."""

    kind: ClassVar[str] = "canary"
    version: Number
    percent: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    """Of the requests, or of the keys."""
    tenant: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    """Whose requests it answers, all of them."""
    by: Literal["request", "key"] = "request"
    """Whether the share is one of request ids or of keys: then a caller sees one version only."""
    who: str = ""
    since: float = Field(default_factory=time.time)
    """Seconds since 1970 UTC."""
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.percent is None) == (self.tenant is None):
            raise ValueError("a canary takes either a percent or a tenant")
        return self

    def takes(self, tenant: str, unit: str) -> bool:
        """Whether it answers a request of this tenant with this request id, or key."""
        if self.percent is None:
            return tenant == self.tenant
        # Of the canary too, so that it is not always the same ones who try what is new.
        digest = hashlib.blake2b(f"{self.id}/{unit}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.percent / 100 * 2**64


class Shadow(Frozen):
    """A version that computes the requests of the default once more; nobody gets its answers."""

    kind: ClassVar[str] = "shadow"
    version: Number
    who: str = ""
    since: float = Field(default_factory=time.time)
    """Seconds since 1970 UTC."""
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class LineState(Frozen):
    """What is to be served for a line."""

    default: Number | None
    """The version that answers when none is named: the one in production."""
    versions: dict[Number, Digest]
    previous: tuple[Number, ...] = ()
    """Those that were in production before and can be again at once, the last one last."""
    canary: Canary | None = None
    shadow: Shadow | None = None

    @property
    def answering(self) -> set[str]:
        """Versions that answer those who name none: in production, or being tried."""
        tried = {trial.version for trial in (self.canary, self.shadow) if trial is not None}
        return tried | ({self.default} if self.default else set())

    @property
    def needed(self) -> set[str]:
        """Those, and what was in production last: it must be able to answer at once."""
        return self.answering | set(self.previous[-1:])


class Unrecorded(Frozen):
    """A change of production that the promotion record in the bucket does not tell of yet."""

    line: LineName
    entry: Entry


class State(Frozen):
    """What the server is to serve; every change counts `generation` up by one."""

    generation: int = Field(0, ge=0)
    lines: dict[LineName, LineState] = {}
    unrecorded: tuple[Unrecorded, ...] = ()


def read_state(root: Path) -> State:
    """The state of a repository folder, empty for a new one; raises Damaged if unreadable."""
    path = root / STATE_FILE
    return parsed(path, State) if path.exists() else State()
