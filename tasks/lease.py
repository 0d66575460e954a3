"""A lease in the object store: one holder at a time, and none for ever.

Taken and handed on by conditional writes only, so of two that see it free one gets it. Its holder
renews it; when the holder dies it runs out.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.store import MissingError, store

SECONDS = 30.0
PATIENCE = 300.0


class LeaseError(RuntimeError):
    """Another process holds the lease and does not let go."""


@contextmanager
def lease(key: str) -> Iterator[None]:
    """Hold the lease kept under `key` for the block; raises LeaseError."""
    owner = uuid.uuid4().hex
    deadline = time.monotonic() + PATIENCE
    while not _taken(key, owner):
        if time.monotonic() > deadline:
            raise LeaseError(f"{store().uri(key)} is held by another run: try again later")
        time.sleep(0.2)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(key, owner, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        _write(key, owner, until=0.0)


def _taken(key: str, owner: str) -> bool:
    """Take the lease if it is free or has run out."""
    try:
        found = store().get(key)
    except MissingError:
        return store().put_new(key, _terms(owner, time.time() + SECONDS))
    if json.loads(found.content)["until"] > time.time():
        return False
    return store().replace(key, _terms(owner, time.time() + SECONDS), found.etag)


def _renew(key: str, owner: str, ended: threading.Event) -> None:
    while not ended.wait(SECONDS / 3):
        _write(key, owner, until=time.time() + SECONDS)


def _write(key: str, owner: str, until: float) -> None:
    """Change the terms of a lease that is still ours."""
    found = store().get(key)
    if json.loads(found.content)["owner"] == owner:
        store().replace(key, _terms(owner, until), found.etag)


def _terms(owner: str, until: float) -> bytes:
    return json.dumps({"owner": owner, "until": until}).encode()
