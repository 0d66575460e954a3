"""Which version serves, and which did before: the record MLflow's aliases mirror.

MLflow has no compare-and-swap, so the truth is one object of the store, and only a writer that
saw its last state can change it.
"""

import time

from pydantic import Field

from models.digests import Digest, Manifest
from models.open import Frozen
from models.signature import MANIFEST_FILE
from tasks.refs import Champion
from tasks.store import MissingError, store


class PromotionError(RuntimeError):
    """The record changed under the hands of the one who would change it."""


class Entry(Frozen):
    """A version that became champion, and the one it was judged against."""

    number: int
    digest: Digest
    against: Digest | None
    since: float = Field(default_factory=time.time)
    """Seconds since 1970 UTC."""


class Promotions(Frozen):
    """All champions of a line, the serving one last."""

    history: tuple[Entry, ...] = ()

    @property
    def champion(self) -> Entry | None:
        """The version that serves."""
        return self.history[-1] if self.history else None


def version_folder(line: str, digest: Digest) -> str:
    """Key prefix of a registered version's files."""
    return f"versions/{line}/{digest}/"


def promotions(line: str) -> Promotions:
    """The line's record; empty before its first champion."""
    try:
        return Promotions.model_validate_json(store().get(_key(line)).content)
    except MissingError:
        return Promotions()


def champion_for(line: str, artifact: Digest) -> Champion | None:
    """Whom a version with this artifact is judged against.

    That is the champion; for a version that serves already, the one it was judged against then,
    so that asking again gives the same verdict.
    """
    champion = promotions(line).champion
    if champion is None:
        return None
    found = _load(line, champion)
    if found.manifest.digest != artifact:
        return found
    if champion.against is None:
        return None
    previous = next(e for e in promotions(line).history if e.digest == champion.against)
    return _load(line, previous)


def promote(line: str, number: int, digest: Digest) -> None:
    """Make the version champion; a version that is champion already changes nothing.

    Raises PromotionError when another version became champion at the same moment.
    """
    try:
        seen = store().get(_key(line))
    except MissingError:
        seen = None
    record = Promotions.model_validate_json(seen.content) if seen else Promotions()
    if record.champion is not None and record.champion.digest == digest:
        return
    against = record.champion.digest if record.champion else None
    entry = Entry(number=number, digest=digest, against=against)
    updated = Promotions(history=(*record.history, entry))
    content = updated.model_dump_json(indent=1).encode()
    key = _key(line)
    if not (store().replace(key, content, seen.etag) if seen else store().put_new(key, content)):
        raise PromotionError(f"another version of {line} became champion meanwhile: run again")


def _load(line: str, entry: Entry) -> Champion:
    content = store().get(version_folder(line, entry.digest) + MANIFEST_FILE).content
    return Champion(
        digest=entry.digest,
        number=entry.number,
        manifest=Manifest.model_validate_json(content),
    )


def _key(line: str) -> str:
    return f"promotions/{line}.json"
