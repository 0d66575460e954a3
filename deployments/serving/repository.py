"""The versions this server answers with: loaded, defaulted, unloaded, and remembered on disk.

`<root>/<line>/<version number>/` is a version folder, `<root>/state.json` says what is to be
served. Both survive a restart with the store and MLflow down, and every digest is proven again.
Readers see one immutable map, swapped whole: a request never waits for a load.

Several workers may serve one folder. Each follows `state.json`; a change is written there by the
worker that was asked, and returns once every worker serves it.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import orjson

from deployments.serving.folder import (
    DIGEST,
    LINE,
    NUMBER,
    exclusive,
    local,
    matches,
    stamp,
    stored,
    write_file,
    write_folder,
)
from deployments.serving.line import Failed, Line
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import Served, open_version
from deployments.serving.state import (
    STATE_FILE,
    Canary,
    LineState,
    Shadow,
    State,
    Unrecorded,
    read_state,
)
from deployments.serving.triton import triton_config
from deployments.serving.workers import Workers
from models.digests import IntegrityError
from models.promotions import Entry
from models.trust import Trust, TrustError
from models.version import Reader, read_verified

TRITON_FILE = "config.pbtxt"
FOLLOW_SECONDS = 0.05
"""How often a worker looks whether another one changed the state."""
EVERYWHERE_SECONDS = 20.0
"""Longest that a change waits for every worker to follow."""
_log = logging.getLogger("modelmint.serving")


class Repository:
    """The loaded versions of the lines below `root`, as one worker of a server has them.

    Only versions signed by a key of `trust` are loaded. Thread-safe: changes are made one at a
    time, in all workers together; readers are never kept waiting, and neither is a change kept
    waiting by a load. Raises OSError when the folder cannot be used.
    """

    def __init__(self, root: Path, trust: Trust) -> None:
        self.root = root
        self._trust = trust
        root.mkdir(parents=True, exist_ok=True)
        self.workers = Workers(root / ".workers")
        self._changes, self._loads = threading.Lock(), threading.Lock()
        self._lines: Mapping[str, Line] = MappingProxyType({})
        self._state, self._stamp = State(), (0, 0, 0)

    def close(self) -> None:
        """No longer be one of the workers that follow the state."""
        self.workers.leave()

    def restore(self) -> None:
        """Serve what `state.json` says; a version that fails is logged and left out.

        Raises ValueError when the file cannot be read: starting empty would forget what to serve.
        """
        self.refresh()
        # Once more while nobody changes anything: from here on a change waits for this worker too.
        with self._changing():
            self._acknowledge()

    def follow(self) -> None:
        """From now on serve what other workers write into `state.json`, in a thread."""

        def look() -> None:
            while True:
                time.sleep(FOLLOW_SECONDS)
                try:
                    self.refresh()
                except (OSError, ValueError):
                    _log.exception("state.json cannot be followed")
                    time.sleep(1)

        threading.Thread(target=look, name="follow", daemon=True).start()

    def refresh(self) -> None:
        """Serve what `state.json` says now; raises ValueError when it cannot be read."""
        if stamp(self.root / STATE_FILE) != self._stamp:
            with self._changes:
                self._catch_up()

    @property
    def state(self) -> State:
        """What is to be served, as it was last read or written here."""
        return self._state

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
        with exclusive(self._loads, self.root / ".loads.lock"):
            self.refresh()
            served = self._held(name, number, digest)
            if served is None:
                served = self._open(name, number, digest, reader)
                with self._changing():
                    self._held(name, number, digest)
                    line = self._lines.get(name, Line())
                    failed = {n: f for n, f in line.failed.items() if n != number}
                    versions = {**line.versions, number: served}
                    self._publish(name, replace(line, versions=versions, failed=failed))
        self._everywhere(name, number)
        return served

    def set_default(self, name: str, number: str, entry: Entry | None = None) -> Served:
        """Let a loaded version answer when none is named; raises ProtocolError 404 or 503.

        An entry is kept until it is in the promotion record. Without one the record has it: then it
        is 409 while the record lacks a change made here, which it would undo.
        """
        with self._changing():
            if entry is None and any(one.line == name for one in self._state.unrecorded):
                raise ProtocolError(
                    409, f"{name} was changed here and that is not recorded yet", "unrecorded"
                )
            served = self.get(name, number)
            line = self.line(name)
            if line.default != number:
                before = () if line.default is None else (line.default,)
                kept = (*(n for n in line.previous if n not in before), *before)
                self._publish(name, line.produced(number, kept), self._entry(line, served, entry))
        self._everywhere(name, number)
        return served

    def roll_back(self, name: str, number: str | None, entry: Entry) -> tuple[Served, str]:
        """Put a version back into production, the one before the present one for None.

        Returns it and the number that it replaces. What was promoted after it is no longer a
        version to go back to. Raises ProtocolError: 404 when there is none or it is not loaded,
        409 when it is in production already, 503 when it failed verification.
        """
        with self._changing():
            line = self.line(name)
            if number is None and not line.previous:
                raise ProtocolError(
                    404,
                    f"no version of {name} was in production before: promote one",
                    "no_previous",
                )
            served = self.get(name, number or line.previous[-1])
            if line.default in (None, served.number):
                raise ProtocolError(
                    409, f"{name} version {served.number} is in production already", "conflict"
                )
            kept = line.previous
            if served.number in kept:
                kept = kept[: kept.index(served.number)]
            changed = line.produced(served.number, kept)
            self._publish(name, changed, self._entry(line, served, entry))
        self._everywhere(name, served.number)
        return served, str(line.default)

    def unload(self, name: str, number: str) -> None:
        """Stop serving a version; requests it is answering finish. Its folder stays.

        Raises ProtocolError: 404 when it is not loaded, 409 when it is the default.
        """
        with self._changing():
            line = self.line(name)
            if number == line.default:
                raise ProtocolError(
                    409, f"version {number} is the default of {name}: promote another", "conflict"
                )
            if number not in line.versions and number not in line.failed:
                self._absent(name, number, line)
            versions = {n: v for n, v in line.versions.items() if n != number}
            failed = {n: f for n, f in line.failed.items() if n != number}
            previous = tuple(n for n in line.previous if n != number)
            changed = replace(line, versions=versions, failed=failed, previous=previous)
            self._publish(name, changed.without_trials_of(number))
        self._everywhere(name, number)

    def try_out(self, name: str, kind: str, trial: Canary | Shadow | None) -> None:
        """Start a trial of a loaded version, or end it for None.

        Raises ProtocolError: 404 when the version is not loaded, 409 when it is the default, 503
        when it failed verification.
        """
        with self._changing():
            line = self.line(name)
            if trial is not None:
                self.get(name, trial.version)
                if trial.version == line.default:
                    raise ProtocolError(
                        409, f"version {trial.version} of {name} is in production", "conflict"
                    )
            canary = trial if isinstance(trial, Canary) else None
            shadow = trial if isinstance(trial, Shadow) else None
            changed = replace(
                line,
                canary=canary if kind == "canary" else line.canary,
                shadow=shadow if kind == "shadow" else line.shadow,
            )
            self._publish(name, changed)
        self._everywhere(name, str(line.default))

    def recorded(self, ids: set[str]) -> None:
        """Forget entries that are in the promotion record now."""
        with self._changing():
            left = tuple(one for one in self._state.unrecorded if one.entry.id not in ids)
            self._write(self._lines, left)

    def _held(self, name: str, number: str, digest: str) -> Served | None:
        """The version if it is loaded; raises ProtocolError 409 when the number is another's."""
        line = self._lines.get(name, Line())
        held = line.digests.get(number, digest)
        if held != digest:
            raise ProtocolError(
                409, f"{name} version {number} is {held[:12]}: unload it first", "conflict"
            )
        return line.versions.get(number)

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

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The state as it is now, to this thread of this worker alone."""
        with exclusive(self._changes, self.root / ".changes.lock"):
            self._catch_up()
            yield

    def _catch_up(self) -> None:
        path = self.root / STATE_FILE
        found = stamp(path)
        if found == self._stamp:
            return
        state = read_state(self.root)
        self._lines = MappingProxyType(
            {name: self._opened(name, wanted) for name, wanted in state.lines.items()}
        )
        self._state, self._stamp = state, found
        self._acknowledge()

    def _opened(self, name: str, wanted: LineState) -> Line:
        """The line as it is to be; what is loaded already is not opened again."""
        before = self._lines.get(name, Line())
        versions: dict[str, Served] = {}
        failed: dict[str, Failed] = {}
        # The default first: it answers soonest.
        for number in sorted(wanted.versions, key=lambda n: n != wanted.default):
            digest, held = wanted.versions[number], before.versions.get(number)
            if held is not None and held.digest == digest:
                versions[number] = held
                continue
            try:
                versions[number] = self._open(name, number, digest, None)
            except Exception as error:  # one version must never stop the others
                reason = error.message if isinstance(error, ProtocolError) else "internal error"
                failed[number] = Failed(digest, reason)
                unexpected = not isinstance(error, ProtocolError)
                _log.error(
                    "%s version %s is not served: %s", name, number, reason, exc_info=unexpected
                )
        ordered = {number: versions[number] for number in wanted.versions if number in versions}
        trials = wanted.canary, wanted.shadow
        return Line(wanted.default, ordered, failed, wanted.previous, *trials)

    def _entry(self, line: Line, served: Served, entry: Entry | None) -> tuple[Unrecorded, ...]:
        """What is not recorded yet, with the entry completed by what the repository knows."""
        if entry is None:
            return self._state.unrecorded
        replaced = line.digests.get(line.default) if line.default else None
        changed = {"number": int(served.number), "digest": served.digest, "replaced": replaced}
        one = Unrecorded(line=served.line, entry=entry.model_copy(update=changed))
        return (*self._state.unrecorded, one)

    def _publish(
        self, name: str, line: Line, unrecorded: tuple[Unrecorded, ...] | None = None
    ) -> None:
        lines = {**self._lines, name: line}
        if not line.versions and not line.failed:
            del lines[name]
        if line.ready:
            text = triton_config(line.versions[str(line.default)])
            write_file(self.root / name / TRITON_FILE, text.encode())
        self._write(lines, self._state.unrecorded if unrecorded is None else unrecorded)

    def _write(self, lines: Mapping[str, Line], unrecorded: tuple[Unrecorded, ...]) -> None:
        state = State(
            generation=self._state.generation + 1,
            lines={name: line.state for name, line in lines.items()},
            unrecorded=unrecorded,
        )
        # On disk first: a change the caller was told of is never lost.
        path = self.root / STATE_FILE
        write_file(path, orjson.dumps(state.model_dump(), option=orjson.OPT_INDENT_2))
        self._lines = MappingProxyType(dict(lines))
        self._state, self._stamp = state, stamp(path)
        self._acknowledge()

    def _acknowledge(self) -> None:
        failed = {
            f"{name}/{number}": one.reason
            for name, line in self._lines.items()
            for number, one in line.failed.items()
        }
        self.workers.acknowledge(self._state.generation, failed)

    def _everywhere(self, name: str, number: str) -> None:
        """Wait until every worker serves the state; raises ProtocolError 503 naming the others."""
        version = f"{name}/{number}"
        behind = self.workers.behind(self._state.generation, version, EVERYWHERE_SECONDS)
        if behind:
            said = "; ".join(f"worker {one.pid}: {one.reason}" for one in behind)
            raise ProtocolError(
                503, f"{len(behind)} of {self.workers.count()} workers: {said}", "workers_behind"
            )

    def _absent(self, name: str, number: str, line: Line) -> NoReturn:
        if number in line.failed:
            raise ProtocolError(
                503, f"version {number} of {name} failed verification", "version_failed"
            )
        raise ProtocolError(
            404, f"version {number[:12]!r} of {name} is not loaded", "version_not_loaded"
        )
