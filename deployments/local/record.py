"""`service.json`: what is known of the process that was started last."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.local.ports import Ports


@dataclass(frozen=True)
class Record:
    """A process, told from a later one with the same pid by `processes.identity_of`."""

    pid: int
    identity: str
    ports: Ports
    command: list[str]
    kept: bool = False
    """Whether a process manager started it and will start it again."""


def read(path: Path) -> Record | None:
    """The record; None when there is none, or none that can be read."""
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # As good as lost: the mark in their environment still finds the processes.
        return None


def write(path: Path, record: Record) -> None:
    """Replace the record in one step, so that nobody reads half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=1))
    partial.replace(path)
