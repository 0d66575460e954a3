"""Which version serves, and which did before: the record MLflow's aliases mirror.

MLflow has no compare-and-swap, so the truth is one object of the store (`models.promotions`), and
only a writer that saw its last state can change it.
"""

from models.digests import Digest, Manifest
from models.promotions import Entry, Promotions, record_key
from models.signature import MANIFEST_FILE
from tasks import tracking
from tasks.refs import Champion
from tasks.store import MissingError, store


class PromotionError(RuntimeError):
    """The record changed under the hands of the one who would change it."""


def version_folder(line: str, digest: Digest) -> str:
    """Key prefix of a registered version's files."""
    return f"versions/{line}/{digest}/"


def promotions(line: str) -> Promotions:
    """The line's record; empty before its first champion."""
    try:
        return Promotions.model_validate_json(store().get(record_key(line)).content)
    except MissingError:
        return Promotions()


def champion_for(line: str, artifact: Digest) -> Champion | None:
    """Whom a version with this artifact is judged against.

    That is the champion; for one that serves the same files already, the one these were judged
    against then, so that asking again gives the same verdict.
    """
    record = promotions(line)
    entry = record.champion
    while entry is not None:
        found = _load(line, entry)
        if found.manifest.digest != artifact:
            return found
        entry = next((one for one in record.history if one.digest == entry.against), None)
    return None


def promote(line: str, number: int, digest: Digest, by: str = "", why: str = "") -> Entry:
    """Record that the version is champion; one that is champion already changes nothing.

    Returns the entry that made it champion. Raises PromotionError when another version became
    champion at the same moment.
    """
    try:
        seen = store().get(record_key(line))
    except MissingError:
        seen = None
    record = Promotions.model_validate_json(seen.content) if seen else Promotions()
    if record.champion is not None and record.champion.digest == digest:
        return record.champion
    updated = record.with_entry(Entry(number=number, digest=digest, by=by, why=why))
    content = updated.model_dump_json(indent=1).encode()
    key = record_key(line)
    if not (store().replace(key, content, seen.etag) if seen else store().put_new(key, content)):
        raise PromotionError(f"another version of {line} became champion meanwhile: run again")
    return updated.history[-1]


def mirror(line: str) -> None:
    """Have MLflow's alias `champion` name the champion; raises MLflow's errors.

    What was mirrored last is remembered, since importing MLflow takes two seconds.
    """
    champion = promotions(line).champion
    if champion is None:
        return
    key, now = f"registry/{line}.alias", f"{champion.number} {tracking.address()}".encode()
    try:
        if store().get(key).content == now and tracking.exists():
            return
    except MissingError:
        pass
    tracking.client().set_registered_model_alias(line, "champion", str(champion.number))
    store().put(key, now)


def _load(line: str, entry: Entry) -> Champion:
    content = store().get(version_folder(line, entry.digest) + MANIFEST_FILE).content
    return Champion(
        digest=entry.digest,
        number=entry.number,
        manifest=Manifest.model_validate_json(content),
    )
