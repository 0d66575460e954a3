"""A lease in the object store: one holder at a time, and none for ever.

Taken and handed on by conditional writes only, so of two that see it free one gets it. Its holder
changes it every `BEAT` seconds. Who waits takes it over when it has seen no change for `SECONDS`
by its own monotonic clock, so no two clocks are compared and none may not jump. (Kubernetes' leader
election and Amazon's DynamoDB lock client do the same.) A holder whose process was on this machine
and is gone is not waited for.

A holder that was stopped for so long, and then goes on, is one of two: what it does must be
harmless when done twice.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tasks.process import identity
from tasks.store import MissingError, StoreError, store

SECONDS = 15.0
BEAT = 2.0
PATIENCE = 300.0
POLL = 0.3


class LeaseError(RuntimeError):
    """Another process holds the lease and does not let go."""


class Held(NamedTuple):
    """A lease as it is in the store; `owner` is empty when nobody holds it."""

    owner: str
    purpose: str
    """Who holds it, for people and for the watchdog."""
    change: str
    """Differs whenever the holder has shown that it lives."""


@contextmanager
def lease(
    key: str,
    purpose: str = "",
    patience: float = PATIENCE,
    waiting: Callable[[Held], None] = lambda _: None,
) -> Iterator[None]:
    """Hold the lease kept under `key` for the block.

    Args:
        key: Of the object that is the lease.
        purpose: What for; others see it.
        patience: Seconds to wait for a holder that lives.
        waiting: Called with the holder whenever it was asked in vain.

    Raises LeaseError, or StoreError when the store does not answer for as long.
    """
    owner = f"{identity(os.getpid())} {uuid.uuid4().hex}"
    _take(key, owner, purpose, patience, waiting)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(key, owner, purpose, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        # If the store is away it runs out by itself; the block's own outcome counts.
        with suppress(StoreError, MissingError):
            _write(key, owner, _terms("", purpose, 0))


def holder(key: str) -> Held:
    """The lease now, whether or not its holder lives; raises StoreError."""
    try:
        found = store().get(key)
    except MissingError:
        return Held("", "", "")
    terms = json.loads(found.content)
    return Held(terms["owner"], terms.get("purpose", ""), found.etag)


def release(key: str, held: Held) -> bool:
    """Free the lease of a holder that is known to be dead; False when it has changed since."""
    return store().replace(key, _terms("", held.purpose, 0), held.change)


def _take(
    key: str, owner: str, purpose: str, patience: float, waiting: Callable[[Held], None]
) -> None:
    mine = _terms(owner, purpose, 0)
    began = changed = time.monotonic()
    last = ""
    while True:
        try:
            held = holder(key)
            now = time.monotonic()
            if held.change != last:
                last, changed = held.change, now
            if held.owner == owner:
                # The store had taken it, and its answer was lost.
                taken = True
            elif not held.change:
                taken = store().put_new(key, mine)
            elif not held.owner or _gone(held.owner) or now - changed > SECONDS:
                taken = store().replace(key, mine, held.change)
            else:
                taken = False
        except StoreError:
            # Nothing is known of the holder meanwhile: its time begins anew.
            last = ""
            if time.monotonic() - began > patience:
                raise
            time.sleep(POLL)
            continue
        if taken:
            return
        if now - began > patience:
            raise LeaseError(f"{store().uri(key)} is held by another run: try again later")
        waiting(held)
        time.sleep(POLL)


def _renew(key: str, owner: str, purpose: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT):
        beat += 1
        # The store may be back before anybody else has seen the lease run out.
        with suppress(StoreError, MissingError):
            _write(key, owner, _terms(owner, purpose, beat))


def _write(key: str, owner: str, content: bytes) -> None:
    """Change a lease that is still ours."""
    found = holder(key)
    if found.owner == owner:
        store().replace(key, content, found.change)


def _gone(owner: str) -> bool:
    """Whether the holder was a process of this machine and pid namespace that is no more."""
    process, here = owner.partition(" ")[0].split("/"), identity(os.getpid()).split("/")
    there = len(process) == len(here) == 4 and process[:2] == here[:2]
    return there and identity(int(process[2])).split("/") != process


def _terms(owner: str, purpose: str, beat: int) -> bytes:
    return json.dumps({"owner": owner, "purpose": purpose, "beat": beat}).encode()
