"""A version as a folder that another site can verify, import and replay.

Beside the version's own files: `snapshot.json` (name, size and SHA-256 of every raw object),
`source.tar.gz` (the code), `replays/`, with data `raw/<SHA-256>`, and for whoever chooses to trust
them the public keys of those who signed: `key.json` the version, `keys/<key id>.json` a verdict or
a replay. Everything but the keys is named by a signed digest; a folder `raw/` is complete or
refused, and without one the version comes without its data.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from models.attestation import UntrustedError
from models.digests import IntegrityError
from models.open import Frozen
from models.signature import VERDICT_FILE
from models.table_digest import table_digest
from models.trust import PublicKey, trust
from models.version import LARGEST_FILE, LARGEST_JSON, Verified
from tasks import provenance
from tasks.folders import REPLAYS, Folder, LocalFolder, StoredFolder
from tasks.promotion import version_folder
from tasks.recorded import IMPORTED, recorded_line, recorded_snapshot
from tasks.register import digest_of, register_import
from tasks.snapshot import raw_objects, raw_prefix
from tasks.store import store
from tasks.verify import proven, signers, signers_of, testified, verdict_of

SNAPSHOT_FILE, SOURCE_FILE, KEY_FILE = "snapshot.json", "source.tar.gz", "key.json"
KEYS, RAW = "keys", "raw"
SNAPSHOT_SCHEMA = {"name": pl.String, "size": pl.Int64, "sha256": pl.String}


class ExportError(ValueError):
    """The folder cannot be written."""


class Exported(Frozen):
    """What is in an exported folder."""

    line: str
    digest: str
    files: int
    bytes: int
    raw_objects: int
    """How many of the raw objects it brings."""


def export(
    line: str, number: int, goal: Path, *, data: bool = False, openssf: bool = False
) -> Exported:
    """Write the version, with its raw objects if `data`, as a folder that is not there yet.

    With `openssf` it gets an OpenSSF model signature too. Raises ExportError, IntegrityError when
    the version does not verify, CannotReplayError when a raw object is gone, MissingLibraryError.
    """
    if goal.exists():
        raise ExportError(f"{goal} is there already: name a folder that is not")
    digest = digest_of(line, number)
    folder = StoredFolder(line, digest)
    found = proven(folder, line, digest)
    testified(folder, found)
    files = _files(folder, found)
    table = store().get_table(found.recipe.snapshot)
    files[SNAPSHOT_FILE] = json.dumps(table.to_dicts(), indent=1).encode()
    files[SOURCE_FILE] = provenance.text_of_code(found.provenance)
    files |= _keys(found, files)
    if data:
        spec = recorded_line(found.recipe)
        for item in raw_objects(recorded_snapshot(spec, found)):
            files[f"{RAW}/{item.sha256}"] = item.read(raw_prefix(spec.data))
    incoming = goal.with_name(f".{goal.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    for name, content in files.items():
        (incoming / name).parent.mkdir(parents=True, exist_ok=True)
        (incoming / name).write_bytes(content)
    if openssf:
        from tasks.openssf import sign

        sign(incoming)
    incoming.rename(goal)
    return _summary(found, files)


def import_folder(path: Path) -> tuple[Exported, int]:
    """Register an exported version here and give its number of this place; it is not deployed.

    Everything is proven before anything is stored. Raises IntegrityError, and UntrustedError when
    its signer is not trusted here.
    """
    folder = LocalFolder(path)
    try:
        found = proven(folder)
        testified(folder, found)
    except UntrustedError as error:
        missing = ", ".join(map(str, _untrusted(path)))
        hint = f"; of its keys that are not trusted here the folder brings {missing}"
        raise UntrustedError(f"{error}{hint if missing else ''}") from None
    table = _snapshot(folder, found)
    text = folder.read(SOURCE_FILE, LARGEST_FILE)
    found.provenance.dependency(provenance.SOURCE).check(text)
    raw = {sha256: _raw(folder, sha256) for sha256 in table["sha256"].unique()}
    brought = {f"{RAW}/{sha256}": content for sha256, content in raw.items() if content is not None}
    files = _files(folder, found)
    for name, content in brought.items():
        store().put(IMPORTED + name.removeprefix(f"{RAW}/"), content)
    store().put_table(table)
    store().put_content(text)
    prefix = version_folder(found.recipe.line, found.recipe.digest)
    for name, content in files.items():
        store().put(prefix + name, content)
    number = register_import(found.recipe, verdict_of(folder, found))
    return _summary(found, {**files, **brought}), number


def _files(folder: Folder, found: Verified) -> dict[str, bytes]:
    """The signed files, and what was said of the version since."""
    said = [*folder.replays(), *([VERDICT_FILE] if verdict_of(folder, found) else [])]
    return {**found.files, **{name: folder.read(name, LARGEST_JSON) for name in said}}


def _keys(found: Verified, files: dict[str, bytes]) -> dict[str, bytes]:
    """The public keys of whoever signed one of the files, the version's signer first."""
    maker, *others = signers(found)
    said = [n for n in files if n == VERDICT_FILE or n.startswith(REPLAYS)]
    others += [key for name in said for key in signers_of(files[name])]
    named = {f"{KEYS}/{key.keyid}.json": key for key in others if key.keyid != maker.keyid}
    keys = {KEY_FILE: maker, **named}
    return {name: key.model_dump_json(indent=1).encode() for name, key in keys.items()}


def _untrusted(path: Path) -> Iterator[Path]:
    """The files of keys the folder brings that are not trusted here, as far as they are keys."""
    for file in (path / KEY_FILE, *sorted((path / KEYS).glob("*.json"))):
        with suppress(OSError, ValueError):
            key = PublicKey.model_validate_json(file.read_bytes())
            if not trust().keys([key.keyid]):
                yield file


def _snapshot(folder: Folder, found: Verified) -> pl.DataFrame:
    content = folder.read(SNAPSHOT_FILE, LARGEST_FILE)
    try:
        rows: list[dict[str, Any]] = json.loads(content)
        table = pl.DataFrame(rows, schema=SNAPSHOT_SCHEMA)
    except (ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{SNAPSHOT_FILE} is no list of raw objects: {error}") from None
    if not table["sha256"].str.contains(r"^[0-9a-f]{64}$").all():
        raise IntegrityError(f"{SNAPSHOT_FILE}: not every `sha256` is a SHA-256")
    if table_digest(table) != found.recipe.snapshot:
        raise IntegrityError(
            f"{SNAPSHOT_FILE} has digest {table_digest(table)[:12]}, the recipe names"
            f" {found.recipe.snapshot[:12]}: it was altered"
        )
    return table


def _raw(folder: LocalFolder, sha256: str) -> bytes | None:
    """The raw object, None when the export brought no data."""
    if not (folder.path / RAW).is_dir():
        return None
    content = folder.read(f"{RAW}/{sha256}", LARGEST_FILE)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError(f"{RAW}/{sha256} has another SHA-256 than its name: it was altered")
    return content


def _summary(found: Verified, files: dict[str, bytes]) -> Exported:
    return Exported(
        line=found.recipe.line,
        digest=found.recipe.digest,
        files=len(files),
        bytes=sum(map(len, files.values())),
        raw_objects=sum(name.startswith(f"{RAW}/") for name in files),
    )
