"""How a worker follows `state.json`, and how one that changes it has all of them follow.

A change is written to the file under a lock of all workers, and is done once every living worker
has acknowledged it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import orjson

from deployments.serving import metrics
from deployments.serving.disk import Damaged, written
from deployments.serving.folder import TRITON_FILE, exclusive, line_folder, stamp
from deployments.serving.line import Failed, Line
from deployments.serving.memory import Memory, in_order
from deployments.serving.opening import open_proven
from deployments.serving.protocol import ProtocolError
from deployments.serving.state import STATE_FILE, State, Unrecorded, read_state
from deployments.serving.triton import triton_config
from deployments.serving.workers import Workers
from models.files import write
from models.trust import Trust

FOLLOW_SECONDS = 0.05
"""How often a worker looks whether another one changed the state."""
EVERYWHERE_SECONDS = 20.0
"""Longest that a change waits for every worker to follow."""
_log = logging.getLogger("modelmint.serving")


class Follower:
    """The lines of a repository folder as one worker serves them, which are those of its state.

    Only versions signed by a key of `trust` are loaded. Thread-safe: changes are made one at a
    time, in all workers together; readers are never kept waiting. Raises OSError when the folder
    cannot be used.
    """

    def __init__(self, root: Path, trust: Trust, memory: int | None = None) -> None:
        self.root = root
        self._trust, self._memory = trust, Memory(root, memory)
        root.mkdir(parents=True, exist_ok=True)
        self.workers = Workers(root / ".workers")
        self._changes, self._loads = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._waking: dict[str, threading.Lock] = {}
        """By digest: who opens a version that was out of memory."""
        self._lines: Mapping[str, Line] = MappingProxyType({})
        self._settled: Mapping[str, Line] = self._lines  # in which nothing is left to open
        self._state, self._stamp = State(), (0, 0, 0)
        self._damaged = False

    def close(self) -> None:
        """No longer be one of the workers that follow the state."""
        self._closed.set()
        self.workers.leave()

    def restore(self) -> None:
        """Serve what `state.json` says; a version that fails is logged and left out.

        Raises ValueError when the file cannot be read: starting empty would forget what to serve.
        """
        with self._changes:
            self._catch_up(whole=True)
        # Once more while nobody changes anything: from here on a change waits for this worker too.
        with self._changing():
            self._acknowledge()

    def follow(self) -> None:
        """From now on serve what other workers write into `state.json`.

        In one thread, and in another open what they have opened, and what is out of memory and is
        now the version to go back to: no change waits for that.
        """
        for name, work in (("follow", self.refresh), ("open", self._open_all)):
            threading.Thread(target=self._again, args=[work], name=name, daemon=True).start()

    def _again(self, work: Callable[[], None]) -> None:
        while not self._closed.wait(FOLLOW_SECONDS):
            try:
                work()
            except Damaged:  # which is logged once
                time.sleep(1)
            except (OSError, ValueError):
                _log.exception("state.json cannot be followed")
                time.sleep(1)

    def refresh(self) -> None:
        """Serve what `state.json` says now.

        Raises Damaged, a ProtocolError 503, when it cannot be read; what was served still is.
        """
        if self._damaged or stamp(self.root / STATE_FILE) != self._stamp:
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

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The state as it is now, to this thread of this worker alone.

        Raises ProtocolError 503 when what is changed cannot be written.
        """
        changing = exclusive(self._changes, self.root / ".changes.lock")
        with written(self.root / STATE_FILE), changing:
            self._catch_up()
            yield

    def _catch_up(self, *, whole: bool = False) -> None:
        """Serve what the file says; what answers nobody yet is opened by `whole` alone."""
        path = self.root / STATE_FILE
        found = stamp(path)
        if found == self._stamp and not self._damaged:
            return
        state = self._read()
        self._lines = self._fitted(self._opened(state, whole))
        self._state = state
        self._acknowledge()
        self._stamp = found  # last: what could not be acknowledged is to be once more

    def _read(self) -> State:
        try:
            state = read_state(self.root)
        except Damaged as error:
            if not self._damaged:
                _log.error("%s; what it held is served on", error)
                metrics.unreadable(STATE_FILE, True)
            self._damaged = True
            raise
        if self._damaged:
            metrics.unreadable(STATE_FILE, False)
        self._damaged = False
        return state

    def _opened(self, state: State, whole: bool) -> dict[str, Line]:
        """The lines as they are to be; what is in memory already is not opened again."""
        lines = {
            name: Line(
                default=one.default,
                previous=one.previous,
                canary=one.canary,
                shadow=one.shadow,
            )
            for name, one in state.lines.items()
        }
        for name, number in in_order(state):
            line, wanted = lines[name], state.lines[name]
            digest = wanted.versions[number]
            must = number in (wanted.needed if whole else wanted.answering)
            before = self._lines.get(name, Line())
            held = before.versions.get(number)
            if held is not None and held.digest == digest:
                lines[name] = line.holding(held)
                continue
            filled = {one: list(found.versions) for one, found in lines.items()}
            rests = before.idle.get(number) == digest
            if not must and (rests or not self._memory.room(filled, name, number)):
                lines[name] = replace(line, idle={**line.idle, number: digest})
            elif not must and not whole:
                lines[name] = replace(line, opening={**line.opening, number: digest})
            else:
                lines[name] = self._with_opened(line, name, number, digest)
        return lines

    def _with_opened(self, line: Line, name: str, number: str, digest: str) -> Line:
        """The line with the version in memory, or with why that failed."""
        try:
            return line.holding(open_proven(self.root, self._trust, name, number, digest))
        except Exception as error:  # one version must never stop the others
            reason = error.message if isinstance(error, ProtocolError) else "internal error"
            unexpected = not isinstance(error, ProtocolError)
            _log.error("%s version %s is not served: %s", name, number, reason, exc_info=unexpected)
            line = line.without(number)
            return replace(line, failed={**line.failed, number: Failed(digest, reason)})

    def _open_all(self) -> None:
        lines = self._lines
        if lines is self._settled:
            return
        for name, line in lines.items():
            for number, digest in line.unopened.items():
                with self._waking.setdefault(digest, threading.Lock()):
                    if self._lines.get(name, Line()).unopened.get(number) != digest:
                        continue
                    opened = self._with_opened(Line(), name, number, digest)
                    with self._changes:
                        self._put_opened(name, number, digest, opened)
        self._settled = lines

    def _put_opened(self, name: str, number: str, digest: str, opened: Line) -> None:
        """Serve what was opened, if it is still to be."""
        line = self._lines.get(name)
        if line is not None and line.unopened.get(number) == digest:
            left = line.without(number)
            versions = {**left.versions, **opened.versions}
            line = replace(left, versions=versions, failed={**left.failed, **opened.failed})
            self._lines = self._fitted({**self._lines, name: line})
            self._acknowledge()

    def _fitted(self, lines: Mapping[str, Line]) -> Mapping[str, Line]:
        """The lines with as many versions out of memory as its budget asks for."""
        fitted = dict(lines)
        for name, number in self._memory.excess(lines):
            fitted[name] = fitted[name].resting(number)
        return MappingProxyType(fitted)

    def _publish(
        self, name: str, line: Line, unrecorded: tuple[Unrecorded, ...] | None = None
    ) -> None:
        lines = {**self._lines, name: line}
        if not line.digests:
            del lines[name]
        if line.ready:
            text = triton_config(line.versions[str(line.default)])
            if text is None:
                (line_folder(self.root, name) / TRITON_FILE).unlink(missing_ok=True)
            else:
                write(line_folder(self.root, name) / TRITON_FILE, text.encode(), 0o644)
        self._write(lines, self._state.unrecorded if unrecorded is None else unrecorded)

    def _write(self, lines: Mapping[str, Line], unrecorded: tuple[Unrecorded, ...]) -> None:
        state = State(
            generation=self._state.generation + 1,
            lines={name: line.state for name, line in lines.items()},
            unrecorded=unrecorded,
        )
        # On disk first: a change the caller was told of is never lost.
        path = self.root / STATE_FILE
        write(path, orjson.dumps(state.model_dump(), option=orjson.OPT_INDENT_2), 0o644)
        self._lines = self._fitted(lines)
        self._state, self._stamp = state, stamp(path)
        self._acknowledge()

    def _acknowledge(self) -> None:
        failed = {
            f"{name}/{number}": one.reason
            for name, line in self._lines.items()
            for number, one in line.failed.items()
        }
        opening = [f"{name}/{one}" for name, line in self._lines.items() for one in line.opening]
        self.workers.acknowledge(self._state.generation, failed, opening)

    def _everywhere(self, name: str, number: str) -> None:
        """Wait until every worker serves the state; raises ProtocolError 503 naming the others."""
        version = f"{name}/{number}"
        behind = self.workers.behind(self._state.generation, version, EVERYWHERE_SECONDS)
        if behind:
            said = "; ".join(f"worker {one.pid}: {one.reason}" for one in behind)
            raise ProtocolError(
                503, f"{len(behind)} of {self.workers.count()} workers: {said}", "workers_behind"
            )
