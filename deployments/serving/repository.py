"""The versions this server answers with: loaded, promoted, rolled back, unloaded, and remembered.

`<root>/models/<line>/<version number>/` is a version folder, `<root>/state.json` says what is to be
served. Both survive a restart with the store and MLflow down, and every digest is proven again.
Readers see one immutable map, swapped whole: a request never waits for a load.

Several workers may serve one folder. Each follows `state.json`; a change is written there by the
worker that was asked, and returns once every worker serves it.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from deployments.serving.folder import DIGEST, LINE, NUMBER, exclusive, matches, stored
from deployments.serving.following import Follower
from deployments.serving.line import Failed, Line
from deployments.serving.opening import open_proven
from deployments.serving.placed import meant
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import Served
from deployments.serving.state import Canary, Shadow, Unrecorded
from models.promotions import Entry

_log = logging.getLogger("modelmint.serving")


class Repository(Follower):
    """Changes of what is served; a change is never kept waiting by a load.

    With `memory`, in bytes, versions beyond that budget are opened only when they are asked for.
    """

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
        if served is None:
            return self._absent(name, chosen, line)
        self._memory.touch(served.digest)
        return served

    def wake(self, name: str, number: str | None) -> Served:
        """A version as `get` gives it, opened first when it was out of memory.

        Raises ProtocolError 404 or 503; takes as long as opening does, and keeps only those
        waiting who ask for the same version.
        """
        if number is None or number not in self.line(name).idle:
            return self.get(name, number)
        meant = self.line(name).idle.get(number, "")
        with self._waking.setdefault(meant, threading.Lock()):
            digest = self.line(name).idle.get(number)
            if digest is None:
                return self.get(name, number)
            try:
                served = open_proven(self.root, self._trust, name, number, digest)
            except ProtocolError as error:
                _log.error("%s version %s is not served: %s", name, number, error.message)
                failed = {number: Failed(digest, error.message)}
                with self._changes:
                    self._swap(
                        name,
                        number,
                        digest,
                        lambda one: replace(one.without(number), failed={**one.failed, **failed}),
                    )
                raise ProtocolError(
                    503, f"version {number} of {name} failed verification", "version_failed"
                ) from None
            with self._changes:
                self._memory.touch(digest)
                self._swap(name, number, digest, lambda one: one.holding(served))
            return served

    def _swap(self, name: str, number: str, digest: str, change: Callable[[Line], Line]) -> None:
        """Change a line of this worker alone, if the version is still out of memory."""
        line = self._lines.get(name)
        if line is not None and line.idle.get(number) == digest:
            self._lines = self._fitted({**self._lines, name: change(line)})

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
                served = open_proven(self.root, self._trust, name, number, digest, reader)
                with self._changing():
                    self._held(name, number, digest)
                    line = self._lines.get(name, Line())
                    self._memory.touch(digest)
                    self._publish(name, line.holding(served))
        self._everywhere(name, number)
        return served

    def meant(self, name: str) -> tuple[str, str]:
        """Number and digest that a load without them means; raises as `placed.meant` does."""
        self.refresh()
        return meant(self.root, self._trust, name, self._lines.get(name, Line()))

    def set_default(self, name: str, number: str, entry: Entry | None = None) -> Served:
        """Let a loaded version answer when none is named; raises ProtocolError 404 or 503.

        An entry is kept until it is in the promotion record. Without one the record has it: then it
        is 409 while the record lacks a change made here, which it would undo.
        """
        woken = self.wake(name, number)
        with self._changing():
            if entry is None and any(one.line == name for one in self._state.unrecorded):
                raise ProtocolError(
                    409, f"{name} was changed here and that is not recorded yet", "unrecorded"
                )
            line, served = self._with(name, number, woken)
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
        woken = self.wake(name, self._target(name, number))
        with self._changing():
            line, served = self._with(name, self._target(name, number), woken)
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

    def unload(self, name: str, number: str | None) -> list[str]:
        """Stop serving a version; requests it is answering finish. Its folder stays.

        For None all that are not in production, were not before, and are not being tried: what
        nobody can be waiting for. Returns their numbers. Raises ProtocolError: 404 when it is not
        loaded, 409 when it is the default, or when none of all may go.
        """
        with self._changing():
            line = self.line(name)
            if number is not None and number == line.default:
                raise ProtocolError(
                    409, f"version {number} is the default of {name}: promote another", "conflict"
                )
            if number is not None and number not in line.digests:
                self._absent(name, number, line)
            going = line.unneeded if number is None else [number]
            if not going:
                raise ProtocolError(
                    409,
                    f"all versions of {name} are in production, were before, or are being tried:"
                    " name the version to unload",
                    "conflict",
                )
            for one in going:
                previous = tuple(n for n in line.previous if n != one)
                line = replace(line.without(one), previous=previous).without_trials_of(one)
            self._publish(name, line)
        self._everywhere(name, going[-1])
        return going

    def try_out(self, name: str, kind: str, trial: Canary | Shadow | None) -> None:
        """Start a trial of a loaded version, or end it for None.

        Raises ProtocolError: 404 when the version is not loaded, 409 when it is the default, 503
        when it failed verification.
        """
        woken = self.wake(name, trial.version) if trial else None
        with self._changing():
            line = self.line(name)
            if trial is not None and woken is not None:
                line, _ = self._with(name, trial.version, woken)
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

    def _target(self, name: str, number: str | None) -> str:
        """The version a rollback goes to; raises ProtocolError 404 when there is none."""
        previous = self.line(name).previous
        if number is None and not previous:
            raise ProtocolError(
                404, f"no version of {name} was in production before", "no_previous"
            )
        return previous[-1] if number is None else number

    def _with(self, name: str, number: str, woken: Served) -> tuple[Line, Served]:
        """The line with that version in memory, which may have left it again meanwhile."""
        line = self.line(name)
        if line.idle.get(number) == woken.digest and number == woken.number:
            return line.holding(woken), woken
        return line, self.get(name, number)

    def _held(self, name: str, number: str, digest: str) -> Served | None:
        """The version if it is loaded; raises ProtocolError 409 when the number is another's."""
        line = self._lines.get(name, Line())
        held = line.digests.get(number, digest)
        if held != digest:
            raise ProtocolError(
                409, f"{name} version {number} is {held[:12]}: unload it first", "conflict"
            )
        return line.versions.get(number)

    def _entry(self, line: Line, served: Served, entry: Entry | None) -> tuple[Unrecorded, ...]:
        """What is not recorded yet, with the entry completed by what the repository knows."""
        if entry is None:
            return self._state.unrecorded
        replaced = line.digests.get(line.default) if line.default else None
        changed = {"number": int(served.number), "digest": served.digest, "replaced": replaced}
        one = Unrecorded(line=served.line, entry=entry.model_copy(update=changed))
        return (*self._state.unrecorded, one)

    def _absent(self, name: str, number: str, line: Line) -> NoReturn:
        if number in line.failed:
            raise ProtocolError(
                503, f"version {number} of {name} failed verification", "version_failed"
            )
        raise ProtocolError(
            404, f"version {number[:12]!r} of {name} is not loaded", "version_not_loaded"
        )
