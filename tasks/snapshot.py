"""List a prefix and fix what it holds: every raw object by name, size and SHA-256.

The listing is an observation and made every time. Hashing is a stage: an object whose name, size
and ETag stand in the line's last snapshot is not read again.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from models.data import Data
from models.digests import Digest, json_digest
from models.open import Frozen
from tasks.refs import Listing, Snapshot
from tasks.stage import stage
from tasks.store import MissingError, store, table_key

SCHEMA = {
    "name": pl.String,
    "size": pl.Int64,
    "sha256": pl.String,
    "etag": pl.String,
    "version": pl.String,
    # Where it was read when that is not its name below the prefix.
    "key": pl.String,
}


class EmptyPrefixError(LookupError):
    """Nothing has been landed where the line's data should be."""


def raw_prefix(data: Data) -> str:
    """Where the line's raw objects are, in the bucket."""
    return f"raw/{data.raw}"


def list_objects(data: Data) -> Listing:
    """What is there now; raises EmptyPrefixError when that is nothing."""
    return list_prefix(raw_prefix(data))


def list_prefix(prefix: str) -> Listing:
    """What is below any prefix now; raises EmptyPrefixError when that is nothing."""
    found = list(store().list(prefix))
    if not found:
        raise EmptyPrefixError(
            f"{store().uri(prefix)} is empty: land data there (`modelmint land LINE` lands a"
            " line's example)"
        )
    table = pl.DataFrame(
        [(item.key.removeprefix(prefix), item.size, item.etag) for item in found],
        schema={"name": pl.String, "size": pl.Int64, "etag": pl.String},
        orient="row",
    ).sort("name")
    digest = store().put_table(table)
    return Listing(
        digest=digest,
        stored=(table_key(digest),),
        objects=table.height,
        size=int(table["size"].sum()),
    )


@stage("snapshot")
def take_snapshot(prefix: str, listing: Listing) -> Snapshot:
    """The snapshot of what was listed; raises MissingError if an object changed since."""
    listed = store().get_table(listing.digest)
    known = _last(prefix)
    pairs = listed.join(known, on=["name", "size", "etag"], how="left", maintain_order="left")
    pairs = pairs.with_columns(key=pl.lit(""))
    new = pairs.filter(pl.col("sha256").is_null())

    def hashed(row: tuple[str, int, str]) -> tuple[str, str, str]:
        name, _, etag = row
        fetched = store().get(prefix + name, etag=etag)
        return name, hashlib.sha256(fetched.content).hexdigest(), fetched.version

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(hashed, new.select("name", "size", "etag").iter_rows()))
    fresh = pl.DataFrame(
        read, schema={"name": pl.String, "sha256": pl.String, "version": pl.String}, orient="row"
    )
    located = pl.concat(
        [
            pairs.filter(pl.col("sha256").is_not_null()).select(list(SCHEMA)),
            new.drop("sha256", "version").join(fresh, on="name").select(list(SCHEMA)),
        ]
    ).sort("name")
    located_digest = store().put_table(located)
    digest = store().put_table(located.select("name", "size", "sha256"))
    store().put(_pointer(prefix), located_digest.encode())
    return Snapshot(
        digest=digest,
        stored=(table_key(digest), table_key(located_digest)),
        observed={"hashed": new.height, "reused": located.height - new.height},
        objects=located.height,
        size=listing.size,
        located=located_digest,
    )


class RawObject(Frozen):
    """One raw object of a snapshot."""

    name: str
    sha256: str
    etag: str
    version: str
    key: str = ""

    @property
    def address(self) -> Digest:
        """Identity of name and content; a name counts: its folder or suffix may carry meaning."""
        return address(self.name, self.sha256)

    def read(self, prefix: str) -> bytes:
        """The content the snapshot saw; raises MissingError when it is no longer there."""
        key = self.key or prefix + self.name
        content = store().get(key, version=self.version, etag=self.etag).content
        if hashlib.sha256(content).hexdigest() != self.sha256:
            where = store().uri(key)
            raise MissingError(f"{where} changed since the snapshot was taken: run again")
        return content


def address(name: str, sha256: str) -> Digest:
    """Identity of a raw object by name and content."""
    return json_digest([name, sha256])


def raw_objects(snapshot: Snapshot) -> Iterator[RawObject]:
    """Every object, in the order of the names."""
    table = store().get_table(snapshot.located)
    for row in table.select("name", "sha256", "etag", "version", "key").iter_rows(named=True):
        yield RawObject(**row)


def _pointer(prefix: str) -> str:
    return f"state/{prefix}snapshot"


def _last(prefix: str) -> pl.DataFrame:
    """The last snapshot's objects; none the first time, or when its table is gone."""
    try:
        digest = store().get(_pointer(prefix)).content.decode()
        found = store().get_table(digest)
    except LookupError:
        found = None
    # One that an earlier release wrote may have other columns: everything is hashed once more.
    return found if found is not None and found.schema == SCHEMA else pl.DataFrame(schema=SCHEMA)
