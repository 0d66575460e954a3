"""What is new in the bucket: a line's listing beside the one its last run took.

Listings are the truth; notifications of a store are lost, doubled and late. Whatever starts a run,
the run notes the listing it took (`take`). A watcher compares, and what differs it announces once:
number and digest are written by a conditional put before anything is told, so that every watcher,
also after a crash, tells the same event by the same id.
"""

import time
import uuid

from blake3 import blake3

from models.digests import Digest
from models.open import Frozen
from models.spec import Line
from tasks.refs import Listing
from tasks.store import MissingError, store

NAMESPACE = uuid.UUID("6f1ed7a1-6f9b-5c3c-9c0e-0c8f1e0a7f55")


class Seen(Frozen):
    """What a prefix holds: one digest of every object's name, size and ETag.

    A name overwritten with the same bytes, put in the same way, keeps its ETag.
    """

    digest: Digest
    objects: int
    size: int
    """Sum of the objects' sizes in bytes."""


class Announcement(Frozen):
    """The last change of a line that was told."""

    number: int
    seen: Seen
    settled: bool = False
    """Its runs ended before they could list: the next change starts the next run."""
    at: float
    """When this listing was first told, in seconds since 1970 UTC."""


class Tally:
    """Collects `Seen` from objects as they are listed; its memory does not grow with them.

    The digest is the sum of the objects' digests modulo 2^256 (AdHash, Bellare and Micciancio
    1997), since not every store lists in the order of the names. Whoever may write here could
    search for two listings of one sum, and would hide nothing but the change to their own data.
    """

    def __init__(self) -> None:
        self._sum = self._objects = self._size = 0

    def add(self, name: str, size: int, etag: str) -> None:
        """Count one object."""
        # No name has a NUL, so two objects never give the same bytes.
        digest = blake3(f"{name}\0{size}\0{etag}".encode()).digest()
        self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 256)
        self._objects += 1
        self._size += size

    def include(self, other: "Tally") -> None:
        """Count all that another counted: objects that this one has not."""
        self._sum = (self._sum + other._sum) % (1 << 256)
        self._objects += other._objects
        self._size += other._size

    @property
    def objects(self) -> int:
        """How many were counted so far."""
        return self._objects

    def seen(self) -> Seen:
        """What was counted so far."""
        return Seen(digest=f"{self._sum:064x}", objects=self._objects, size=self._size)


def take(line: str, listing: Listing) -> None:
    """Note that a run of the line works on this listing."""
    tally = Tally()
    for row in store().get_table(listing.digest).select("name", "size", "etag").iter_rows():
        tally.add(*row)
    store().put(f"arrivals/{line}/taken.json", tally.seen().model_dump_json().encode())


def taken(line: str) -> Seen | None:
    """The listing the line's last run took; None before its first run."""
    try:
        return Seen.model_validate_json(store().get(f"arrivals/{line}/taken.json").content)
    except MissingError:
        return None


def announced(line: str) -> Announcement | None:
    """The line's last announcement."""
    found = _announced(line)
    return found[0] if found else None


def announce(line: str, seen: Seen, since: float | None = None) -> Announcement | None:
    """The next announcement, written down; None when another watcher was quicker.

    `since` is when the same listing was first announced, if it was.
    """
    before = _announced(line)
    number = before[0].number + 1 if before else 1
    told = Announcement(number=number, seen=seen, at=time.time() if since is None else since)
    return _written(line, told, before[1] if before else "")


def settle(line: str) -> Announcement | None:
    """Write down that the last announcement's run has ended; None when another was quicker."""
    before = _announced(line)
    if before is None:
        return None
    return _written(line, before[0].model_copy(update={"settled": True}), before[1])


def event(line: Line, told: Announcement) -> dict[str, object]:
    """The Prefect event `data.arrived`; told twice, it has the same id."""
    where = store().uri(f"raw/{line.data.raw}")
    identity = f"{where} {line.name} {told.number} {told.seen.digest}"
    return {
        "id": str(uuid.uuid5(NAMESPACE, identity)),
        "event": "data.arrived",
        "resource": {
            "prefect.resource.id": f"modelmint.line.{line.name}",
            "prefect.resource.name": line.name,
            "modelmint.prefix": where,
        },
        "payload": {"line": line.name, "number": told.number, **told.seen.model_dump()},
    }


def _announced(line: str) -> tuple[Announcement, str] | None:
    try:
        found = store().get(_key(line))
    except MissingError:
        return None
    return Announcement.model_validate_json(found.content), found.etag


def _written(line: str, told: Announcement, etag: str) -> Announcement | None:
    content = told.model_dump_json().encode()
    written = (
        store().replace(_key(line), content, etag) if etag else store().put_new(_key(line), content)
    )
    return told if written else None


def _key(line: str) -> str:
    return f"arrivals/{line}/announced.json"
