"""What is to be served: the content of `state.json`, which every worker follows."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from deployments.serving.folder import LINE, NUMBER
from models.digests import Digest
from models.open import Frozen
from models.promotions import Entry

STATE_FILE = "state.json"
LineName = Annotated[str, StringConstraints(pattern=LINE)]
Number = Annotated[str, StringConstraints(pattern=NUMBER)]


class LineState(Frozen):
    """What is to be served for a line."""

    default: Number | None
    """The version that answers when none is named: the one in production."""
    versions: dict[Number, Digest]
    previous: tuple[Number, ...] = ()
    """Those that were in production before and can be again at once, the last one last."""


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
    """The state of a repository folder, empty for a new one; raises ValueError if unreadable."""
    path = root / STATE_FILE
    return State.model_validate_json(path.read_bytes()) if path.exists() else State()
