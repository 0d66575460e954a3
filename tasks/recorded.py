"""What a version's record says of its making, found again here: line, raw objects, outputs."""

from collections.abc import Container, Mapping
from typing import Any, TypeVar

import polars as pl

from models import catalog
from models.digests import Digest, IntegrityError
from models.open import first
from models.signature import VERSION_FILE
from models.spec import Line
from models.version import Recipe, StageRecord, Verified, proven_recipe
from tasks.folders import StoredFolder
from tasks.promotion import version_folder
from tasks.recipe import DETERMINED
from tasks.refs import Champion, Dataset, Ref, Snapshot
from tasks.register import digest_of
from tasks.snapshot import SCHEMA, raw_prefix
from tasks.store import MissingError, store, table_key
from tasks.verify import proven

R = TypeVar("R", bound=Ref)
IMPORTED = "imported/"


class CannotReplayError(RuntimeError):
    """The version cannot be made again here; the message says what is missing or different."""


class ChangedCodeError(CannotReplayError):
    """The code here is not the recorded one; that one may be run instead."""


class ChangedEnvironmentError(CannotReplayError):
    """Distributions or the platform are not the recorded ones."""


def recorded_version(line: str, number: int) -> Verified:
    """The version, its signature and digests proven; raises IntegrityError."""
    digest = digest_of(line, number)
    return proven(StoredFolder(line, digest), line, digest)


def recorded_line(recipe: Recipe) -> Line:
    """The line as the recipe has it; raises ChangedCodeError when this code reads it otherwise."""
    catalog.modules()
    settings = {k: v for k, v in recipe.settings.items() if k != "confidence"}
    gate = {"confidence": recipe.settings.get("confidence")}
    named = {"name": recipe.line, "title": recipe.line, "gate": gate}
    missing = [name for name in DETERMINED if name not in recipe.stages]
    said = f"stages.{missing[0]}: it is missing" if missing else ""
    try:
        line = Line.model_validate({**named, **settings})
    except ValueError as error:
        said = first(error, "settings")
    if said:
        raise ChangedCodeError(
            f"changed code: the recipe of {VERSION_FILE} does not fit this code: {said}"
        )
    return line


def recorded_snapshot(line: Line, found: Verified) -> Snapshot:
    """The recorded snapshot, found in the bucket as it is now; raises CannotReplayError.

    An object is looked for among what was imported with a version, by its SHA-256; among the
    versions of a versioned bucket; and below the line's prefix. Its content is proven when it is
    read.
    """
    digest, prefix = found.recipe.snapshot, raw_prefix(line.data)
    wanted = _snapshot_table(digest)
    there = pl.DataFrame(
        [(item.key.removeprefix(prefix), item.size, item.etag) for item in store().list(prefix)],
        schema={"name": pl.String, "size": pl.Int64, "etag": pl.String},
        orient="row",
    )
    seen = wanted.join(there, on=["name", "size"], how="left", maintain_order="left")
    seen = seen.with_columns(version=pl.lit(""), key=pl.lit("")).select(list(SCHEMA))
    versions = _read_versions(found)
    imported = {item.key.removeprefix(IMPORTED) for item in store().list(IMPORTED)}
    rows = [_located(row, imported, versions, prefix) for row in seen.iter_rows(named=True)]
    lost = [row["name"] for row in rows if row["etag"] is None]
    if lost:
        raise CannotReplayError(
            f"missing raw object: {store().uri(prefix + lost[0])} is gone or has another size"
            f" ({len(lost)} of {wanted.height} objects)"
        )
    address = store().put_table(pl.DataFrame(rows, schema=SCHEMA))
    return Snapshot(
        digest=digest,
        stored=(table_key(digest), table_key(address)),
        objects=wanted.height,
        size=int(wanted["size"].sum()),
        located=address,
    )


def _snapshot_table(digest: Digest) -> pl.DataFrame:
    try:
        return store().get_table(digest)
    except MissingError as error:
        raise CannotReplayError(f"missing list of raw objects: {error}") from None


def _read_versions(found: Verified) -> dict[str, tuple[str, str]]:
    """Name -> ETag and version id, as the run that made the version read them."""
    try:
        table = store().get_table(found.provenance.located)
    except MissingError:
        return {}
    kept = table.filter(pl.col("version").is_not_null() & (pl.col("version") != ""))
    rows = kept.select("name", "etag", "version").iter_rows()
    return {name: (etag, version) for name, etag, version in rows}


def _located(
    row: dict[str, Any],
    imported: Container[str],
    versions: Mapping[str, tuple[str, str]],
    prefix: str,
) -> dict[str, Any]:
    # First, as one of the same name and size may be here that has other bytes.
    if row["sha256"] in imported:
        return {**row, "etag": "", "key": IMPORTED + row["sha256"]}
    if row["name"] in versions:
        etag, version = versions[row["name"]]
        if row["etag"] != etag and store().exists(prefix + row["name"], version=version):
            return {**row, "etag": etag, "version": version}
    return row


def recorded_output(kind: type[R], stage: StageRecord) -> R:
    """What the stage gave when the version was made; raises CannotReplayError when it is gone."""
    from tasks.results import recorded_result

    try:
        found = recorded_result(stage.key)
    except MissingError:
        found = None
    if not isinstance(found, kind) or found.digest != stage.digest:
        raise CannotReplayError(
            f"missing stage output: what {stage.identity.stage} gave is no longer in the store;"
            " replay it --from-raw"
        )
    return found


def with_dataset(line: Line, champion: Champion | None) -> Champion | None:
    """The champion with the dataset its recipe names, or with why that cannot be had."""
    if champion is None:
        return None
    place = version_folder(line.name, champion.digest) + VERSION_FILE
    try:
        recipe = proven_recipe(store().get(place).content, line.name, champion.digest)
        before, now = (
            one.data.model_dump(mode="json", exclude={"split"})
            for one in (recorded_line(recipe), line)
        )
        if before != now:
            # What tells a row from every other may be another then, and no row be known again.
            raise CannotReplayError("it was cleaned by other settings than the line has now")
        found = recorded_output(Dataset, recipe.stages["clean"])
    except (CannotReplayError, IntegrityError, MissingError, ValueError) as error:
        return champion.model_copy(update={"unknown": str(error).partition("\n")[0]})
    return champion.model_copy(update={"dataset": found, "unknown": ""})
