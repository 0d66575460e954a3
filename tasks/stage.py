"""A stage: a pure function of its arguments that runs as a Prefect task, cached by its stage key.

    @stage("clean")
    def clean(data: Data, snapshot: Snapshot) -> Dataset: ...

A stage is given exactly the part of a line it depends on, so its arguments are its identity.
Called inside a flow it is a Prefect task whose result is a JSON reference in the object store;
`stage.function` is the bare function.
"""

import inspect
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

from pydantic import JsonValue

from models.digests import Digest, json_digest
from models.open import Frozen
from tasks import progress
from tasks.identity import stage_identity
from tasks.refs import Ref

P = ParamSpec("P")
R = TypeVar("R", bound=Ref)


class StageRun(Frozen):
    """One stage of one run, as it is reported."""

    name: str
    key: Digest
    digest: Digest
    cached: bool
    seconds: float
    observed: dict[str, JsonValue]
    fingerprint: dict[str, Digest]
    identity: dict[str, JsonValue]


_parsing = threading.Lock()
_runs: ContextVar[list[StageRun] | None] = ContextVar("runs", default=None)
_key: ContextVar[Digest] = ContextVar("key")
_identity: ContextVar[dict[str, Any] | None] = ContextVar("identity", default=None)
_attempt: ContextVar[str] = ContextVar("attempt", default="")
_scratch: ContextVar[list[Digest]] = ContextVar("scratch")
_check: ContextVar[Callable[[str, dict[str, Any]], None] | None] = ContextVar("check", default=None)


@contextmanager
def recording() -> Iterator[list[StageRun]]:
    """Collect the stages that run in the block, in order."""
    runs: list[StageRun] = []
    token = _runs.set(runs)
    try:
        yield runs
    finally:
        _runs.reset(token)


@contextmanager
def afresh(
    check: Callable[[str, dict[str, Any]], None], attempt: str = ""
) -> Iterator[list[Digest]]:
    """Compute every stage of the block: no cached result, partition or checkpoint is used.

    `check(stage, identity)` is called before each and may raise to refuse it. A block of the same
    `attempt`, by default there is none, goes on from what this one kept when it was killed. Yields
    the names under which stages kept that: worthless when the block ends.
    """
    names: list[Digest] = []
    tokens = _attempt.set(attempt or uuid.uuid4().hex), _check.set(check), _scratch.set(names)
    try:
        yield names
    finally:
        _attempt.reset(tokens[0])
        _check.reset(tokens[1])
        _scratch.reset(tokens[2])


def scratch(identity: Digest) -> Digest:
    """Where a stage keeps what it may find again: by identity, or in a replay by attempt too."""
    attempt = _attempt.get()
    if not attempt:
        return identity
    name = json_digest([identity, attempt])
    _scratch.get().append(name)
    return name


def current_key() -> Digest:
    """The key of the stage that is running; raises LookupError outside of one."""
    return _key.get()


def current_identity() -> dict[str, Any] | None:
    """The identity of the stage that is running; None outside of one."""
    return _identity.get()


class Stage(Generic[P, R]):
    """A stage's name and function; calling it runs it as a Prefect task."""

    def __init__(self, name: str, function: Callable[P, R], cached: bool) -> None:
        self.name, self.function, self.cached = name, function, cached
        self.__doc__ = function.__doc__
        self._signature = inspect.signature(function)

    def identity(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """What the output of this call is a function of; the stage key is its digest."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # CPython counts the depth of syntax trees once for all threads (python/cpython#106905).
        with _parsing:
            return stage_identity(self.name, self.function, bound.arguments)

    def bare(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function itself, without Prefect and without a cache."""
        return self._run(self.identity(*args, **kwargs), *args, **kwargs)

    def _run(self, identity: dict[str, Any], *args: P.args, **kwargs: P.kwargs) -> R:
        tokens = _key.set(json_digest(identity)), _identity.set(identity)
        try:
            return self.function(*args, **kwargs)
        finally:
            _key.reset(tokens[0])
            _identity.reset(tokens[1])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # Here and not above: an isolated process imports stages too, and needs no Prefect.
        from prefect import task

        from tasks.results import stage_results

        identity = self.identity(*args, **kwargs)
        key = json_digest(identity)
        check = _check.get()
        if check is not None:
            check(self.name, identity)
        progress.tell(self.name, "started", key=key)
        start = time.perf_counter()
        ran = False

        def run() -> R:
            nonlocal ran
            ran = True
            return self._run(identity, *args, **kwargs)

        options: dict[str, Any] = {"persist_result": False}
        if self.cached and not _attempt.get():
            options = {
                "persist_result": True,
                "cache_key_fn": lambda _context, _parameters: key,
                "result_storage": stage_results(),
                "result_serializer": "json",
            }
        run.__name__, run.__doc__ = self.name, self.__doc__
        as_task = task(name=self.name, task_run_name=f"{self.name}-{key[:8]}", **options)
        result = as_task(run)()
        unchanged = not ran if self.cached else bool(result.observed.get("unchanged"))
        done = StageRun(
            name=self.name,
            key=key,
            digest=result.digest,
            cached=unchanged,
            seconds=round(time.perf_counter() - start, 3),
            observed=result.observed,
            fingerprint=result.fingerprint,
            identity=identity,
        )
        runs = _runs.get()
        if runs is not None:
            runs.append(done)
        progress.tell(self.name, "finished", run=done)
        return result


def stage(name: str, *, cached: bool = True) -> Callable[[Callable[P, R]], Stage[P, R]]:
    """Make a stage of a function. One that is not `cached` is idempotent and runs every time."""
    return lambda function: Stage(name, function, cached)
