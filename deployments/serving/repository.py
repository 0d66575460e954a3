"""The versions this server answers with: loaded, defaulted, unloaded, and remembered on disk.

`<root>/<line>/<version number>/` is a version folder, `<root>/state.json` says what is to be
served. Both survive a restart with the store and MLflow down, and every digest is proven again.
Readers see one immutable map, swapped whole: a request never waits for a load.
"""

import fcntl
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple, NoReturn

import orjson
from pydantic import StringConstraints

from deployments.serving.folder import (
    DIGEST,
    LINE,
    NUMBER,
    local,
    matches,
    stored,
    write_folder,
)
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import Served, open_version
from deployments.serving.triton import triton_config
from models.digests import Digest, IntegrityError
from models.files import write
from models.open import Frozen
from models.trust import Trust, TrustError
from models.version import Reader, read_verified

STATE_FILE = "state.json"
TRITON_FILE = "config.pbtxt"
Number = Annotated[str, StringConstraints(pattern=NUMBER)]
_log = logging.getLogger("modelmint.serving")


class LineState(Frozen):
    """What is to be served for a line: the default's number and every version's digest."""

    default: Number | None
    versions: dict[Number, Digest]


class State(Frozen):
    """The content of `state.json`."""

    lines: dict[Annotated[str, StringConstraints(pattern=LINE)], LineState]


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

    @property
    def ready(self) -> bool:
        """Whether the line answers when no version is named."""
        return self.default in self.versions

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every version that is to be served."""
        failed = {number: one.digest for number, one in self.failed.items()}
        return {number: one.digest for number, one in self.versions.items()} | failed


class Repository:
    """The loaded versions of the lines below `root`; one server at a time may hold it.

    Only versions signed by a key of `trust` are loaded. Thread-safe: changes are made one at a
    time, readers are never kept waiting. Raises OSError when the folder cannot be used or another
    server holds it.
    """

    def __init__(self, root: Path, trust: Trust) -> None:
        self.root = root
        self._trust = trust
        root.mkdir(parents=True, exist_ok=True)
        # Two servers would overwrite each other's state; the lock goes with the process.
        self._lock = (root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise
        self._changes = threading.Lock()
        self._lines: Mapping[str, Line] = MappingProxyType({})

    def close(self) -> None:
        """Let another server hold the folder."""
        self._lock.close()

    def restore(self) -> None:
        """Load what `state.json` says; a version that fails is logged and left out.

        Raises ValueError when the file cannot be read: starting empty would forget what to serve.
        """
        path = self.root / STATE_FILE
        state = State.model_validate_json(path.read_bytes()) if path.exists() else State(lines={})
        for leftover in [*self.root.glob("*/.incoming-*"), *self.root.glob("*/.damaged-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        lines: dict[str, Line] = {}
        for name, wanted in state.lines.items():
            versions: dict[str, Served] = {}
            failed: dict[str, Failed] = {}
            for number, digest in wanted.versions.items():
                try:
                    versions[number] = self._open(name, number, digest, None)
                except Exception as error:  # one version must never stop the others
                    reason = error.message if isinstance(error, ProtocolError) else "internal error"
                    failed[number] = Failed(digest, reason)
                    unexpected = not isinstance(error, ProtocolError)
                    _log.error(
                        "%s version %s is not served: %s", name, number, reason, exc_info=unexpected
                    )
            lines[name] = Line(wanted.default, versions, failed)
        self._lines = MappingProxyType(lines)

    @property
    def lines(self) -> Mapping[str, Line]:
        """Every line at this moment, by name."""
        return self._lines

    def line(self, name: str) -> Line:
        """The line; raises ProtocolError 404."""
        found = self._lines.get(name)
        if found is None:
            raise ProtocolError(404, f"no model {name[:60]!r} is loaded", "unknown_model")
        return found

    def default(self, name: str) -> Served:
        """The version that answers when none is named; raises ProtocolError 404 or 503."""
        return self.get(name, None)

    def get(self, name: str, number: str | None) -> Served:
        """A loaded version, the default one for None; raises ProtocolError 404 or 503."""
        line = self.line(name)
        chosen = line.default if number is None else number
        if chosen is None:
            raise ProtocolError(404, f"{name} has no default version: promote one", "no_default")
        served = line.versions.get(chosen)
        return self._absent(name, chosen, line) if served is None else served

    def load(self, name: str, number: str, digest: str, source: str | None = None) -> Served:
        """Make the version with this digest answer under its number, fetching it when needed.

        Raises ProtocolError: 400 for a wrong name or source, 404 without a folder or source, 409
        when the number is another version's, 422 when it does not verify or fit, 502 when the
        store does not answer. Whatever is raised, what was served before still is.
        """
        for what, pattern, text in (
            ("name", LINE, name),
            ("version", NUMBER, number),
            ("digest", DIGEST, digest),
        ):
            if not matches(pattern, text):
                raise ProtocolError(400, f"{what} must have the form {pattern}", "bad_name")
        reader = None if source is None else stored(source)
        with self._changes:
            line = self._lines.get(name, Line())
            held = line.digests.get(number, digest)
            if held != digest:
                raise ProtocolError(
                    409, f"{name} version {number} is {held[:12]}: unload it first", "conflict"
                )
            if number in line.versions:
                return line.versions[number]
            served = self._open(name, number, digest, reader)
            failed = {n: f for n, f in line.failed.items() if n != number}
            versions = {**line.versions, number: served}
            self._publish(name, replace(line, versions=versions, failed=failed))
            return served

    def set_default(self, name: str, number: str) -> Served:
        """Let a loaded version answer when none is named; raises ProtocolError 404 or 503."""
        with self._changes:
            served = self.get(name, number)
            line = self.line(name)
            if line.default != number:
                self._publish(name, replace(line, default=number))
            return served

    def unload(self, name: str, number: str) -> None:
        """Stop serving a version; requests it is answering finish. Its folder stays.

        Raises ProtocolError: 404 when it is not loaded, 409 when it is the default.
        """
        with self._changes:
            line = self.line(name)
            if number == line.default:
                raise ProtocolError(
                    409, f"version {number} is the default of {name}: promote another", "conflict"
                )
            if number not in line.versions and number not in line.failed:
                self._absent(name, number, line)
            versions = {n: v for n, v in line.versions.items() if n != number}
            failed = {n: f for n, f in line.failed.items() if n != number}
            self._publish(name, replace(line, versions=versions, failed=failed))

    def _open(self, name: str, number: str, digest: str, source: Reader | None) -> Served:
        folder = self.root / name / number
        try:
            try:
                files = read_verified(local(folder), self._trust, name, digest).files
            except IntegrityError:
                if source is None and not folder.exists():
                    raise ProtocolError(
                        404, f"{name} version {number} is not here: give its source", "no_folder"
                    ) from None
                if source is None:
                    raise
                # Absent or damaged here: proven in memory first, then put in place whole.
                files = read_verified(source, self._trust, name, digest).files
                write_folder(folder, files)
        except IntegrityError as error:
            raise ProtocolError(422, f"{name} version {number}: {error}", "integrity") from None
        except TrustError as error:
            _log.error("%s", error)
            raise ProtocolError(
                503, "a file among the trusted keys is no key: see the server's log", "trust"
            ) from None
        return open_version(name, number, digest, files)

    def _publish(self, name: str, line: Line) -> None:
        lines = {**self._lines, name: line}
        if not line.versions and not line.failed:
            del lines[name]
        state = State(
            lines={
                n: LineState(default=one.default, versions=one.digests) for n, one in lines.items()
            }
        )
        if line.ready:
            text = triton_config(line.versions[str(line.default)])
            write(self.root / name / TRITON_FILE, text.encode(), 0o644)
        # On disk first: a change the caller was told of is never lost.
        content = orjson.dumps(state.model_dump(), option=orjson.OPT_INDENT_2)
        write(self.root / STATE_FILE, content, 0o644)
        self._lines = MappingProxyType(lines)

    def _absent(self, name: str, number: str, line: Line) -> NoReturn:
        if number in line.failed:
            raise ProtocolError(
                503, f"version {number} of {name} failed verification", "version_failed"
            )
        raise ProtocolError(
            404, f"version {number[:12]!r} of {name} is not loaded", "version_not_loaded"
        )
