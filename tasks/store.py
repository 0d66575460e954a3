"""The object store: S3 and nothing else, from the standard AWS environment variables.

Content is addressed by digest and checked on every read, so what a reference names cannot change
under it, and code that only moves content cannot change a result.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import polars as pl

from models.digests import Digest, IntegrityError, Manifest, bytes_digest
from models.table_digest import table_digest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
BUCKET_SETTING = "MODELMINT_BUCKET"
FOLDER_SETTING = "MODELMINT_STORE_FOLDER"
"""Where a store on this machine keeps its data; not set for any other."""


class StoreError(RuntimeError):
    """The store does not answer or refuses; the message says where it is and what it said."""


class MissingError(LookupError):
    """No object of that name is in the store."""


class _ConditionError(Exception):
    """The object is not, or no longer, as the request demands."""


class Listed(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    etag: str


class Fetched(NamedTuple):
    """The content of an object, its ETag, and its version, empty in unversioned buckets."""

    content: bytes
    etag: str
    version: str


class Store:
    """One bucket. Every method raises StoreError when the store does not answer."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self.client, self.bucket = client, bucket

    def uri(self, key: str) -> str:
        """The s3:// address of a key."""
        return f"s3://{self.bucket}/{key}"

    def create_bucket(self) -> None:
        """Create the bucket unless it is there."""
        try:
            self._call(lambda: self.client.head_bucket(Bucket=self.bucket), self.bucket)
        except MissingError:
            self._call(lambda: self.client.create_bucket(Bucket=self.bucket), self.bucket)

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """All objects below the prefix, or those the store lists after that name below it."""
        begin: dict[str, Any] = {"StartAfter": prefix + after} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, **begin
        )
        iterator = iter(pages)
        while (page := self._call(lambda: next(iterator, None), prefix)) is not None:
            for item in page.get("Contents", []):
                yield Listed(item["Key"], item["Size"], item["ETag"].strip('"'))

    def folders(self, prefix: str) -> Iterator[str]:
        """The prefixes one slash below this one, with that slash."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter="/"
        )
        iterator = iter(pages)
        while (page := self._call(lambda: next(iterator, None), prefix)) is not None:
            yield from (item["Prefix"] for item in page.get("CommonPrefixes", []))

    def get(self, key: str, *, version: str = "", etag: str = "") -> Fetched:
        """The object's bytes; raises MissingError, also when it no longer has the given ETag."""
        conditions: dict[str, Any] = {"VersionId": version} if version else {}
        if etag and not version:
            conditions["IfMatch"] = f'"{etag}"'

        def read() -> Fetched:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, **conditions)
            content, etag = answer["Body"].read(), answer["ETag"].strip('"')
            return Fetched(content, etag, answer.get("VersionId", ""))

        try:
            return self._call(read, key)
        except _ConditionError:
            raise MissingError(f"{self.uri(key)} was overwritten since it was listed") from None

    def fetch(self, key: str, path: Path, etag: str) -> None:
        """Copy the object to a file; raises MissingError when it no longer has the ETag."""

        def read() -> None:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, IfMatch=f'"{etag}"')
            with path.open("wb") as file:
                shutil.copyfileobj(answer["Body"], file, 1 << 20)

        try:
            self._call(read, key)
        except _ConditionError:
            raise MissingError(f"{self.uri(key)} was overwritten since it was listed") from None

    def exists(self, key: str, *, version: str = "") -> bool:
        """Whether an object of that name, or that version of it, is there."""
        wanted: dict[str, Any] = {"VersionId": version} if version else {}
        try:
            self._call(lambda: self.client.head_object(Bucket=self.bucket, Key=key, **wanted), key)
        except MissingError:
            return False
        return True

    def put(self, key: str, content: bytes) -> None:
        """Write the object; readers see all of it or none."""
        self._call(lambda: self.client.put_object(Bucket=self.bucket, Key=key, Body=content), key)

    def put_new(self, key: str, content: bytes) -> bool:
        """Write the object unless there is one; says whether this call wrote it."""
        return self._put_if(key, content, {"IfNoneMatch": "*"})

    def put_new_file(self, key: str, path: Path) -> bool:
        """The same with the content of a file, which need not fit memory."""
        with path.open("rb") as file:
            return self._put_if(key, file, {"IfNoneMatch": "*"})

    def replace(self, key: str, content: bytes, etag: str) -> bool:
        """Overwrite the object if it still has the ETag; says whether this call wrote it."""
        try:
            return self._put_if(key, content, {"IfMatch": f'"{etag}"'})
        except MissingError:
            return False

    def _put_if(self, key: str, content: bytes | BinaryIO, condition: dict[str, Any]) -> bool:
        def write() -> None:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **condition)

        try:
            self._call(write, key)
        except _ConditionError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        self._call(lambda: self.client.delete_object(Bucket=self.bucket, Key=key), key)

    def put_content(self, content: bytes) -> Digest:
        """Store bytes under their digest; writing the same content again costs one request."""
        digest = bytes_digest(content)
        # Unconditionally: whoever else writes this key writes the same bytes.
        self.put(content_key(digest), content)
        return digest

    def get_content(self, digest: Digest) -> bytes:
        """The bytes with that digest; raises MissingError or IntegrityError."""
        content = self.get(content_key(digest)).content
        if bytes_digest(content) != digest:
            raise IntegrityError(f"{self.uri(content_key(digest))} was altered: its digest differs")
        return content

    def put_table(self, table: pl.DataFrame) -> Digest:
        """Store a table under the digest of its values."""
        digest = table_digest(table)
        packed = io.BytesIO()
        table.write_parquet(packed, compression="lz4", statistics=False)
        self.put(table_key(digest), packed.getvalue())
        return digest

    def get_table(self, digest: Digest) -> pl.DataFrame:
        """The table with that digest; raises MissingError or IntegrityError."""
        try:
            table = pl.read_parquet(io.BytesIO(self.get(table_key(digest)).content))
        except pl.exceptions.PolarsError as error:
            raise IntegrityError(f"{self.uri(table_key(digest))} is no table: {error}") from None
        if table_digest(table) != digest:
            raise IntegrityError(f"{self.uri(table_key(digest))} was altered: its digest differs")
        return table

    def put_folder(self, files: dict[str, bytes]) -> Manifest:
        """Store several files and the manifest that names them."""
        manifest = Manifest.of(files)
        for content in files.values():
            self.put_content(content)
        return manifest

    def get_file(self, manifest: Manifest, name: str) -> bytes:
        """One file of a stored folder; raises MissingError or IntegrityError."""
        return self.get_content(manifest.files[name].blake3)

    def _call(self, request: Callable[[], T], key: str) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return request()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 404:
                raise MissingError(f"{self.uri(key)}: there is no such object") from None
            if status == 412 or code == "ConditionalRequestConflict":
                raise _ConditionError(key) from None
            said = f"{self.uri(key)}: the store refuses: {error}"
            raise StoreError(f"{said}{_room()}" if (status or 0) >= 500 else said) from None
        except BotoCoreError as error:
            where = self.client.meta.endpoint_url
            raise StoreError(f"the store at {where} does not answer for {key}: {error}") from None


def _room() -> str:
    """What an error of the store's own may come from: it only ever says that it is one."""
    folder = os.environ.get(FOLDER_SETTING, "")
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return " Its log says why; where its disk is full, make room there and run again."
    return (
        f" {free >> 20} MiB are free on the disk of {folder}, where it keeps its data, and it"
        " writes nothing below 200 MiB: if that is why, make room there, run again about a minute"
        " later, and go on from what is finished."
    )


def content_key(digest: Digest) -> str:
    """Where bytes with that digest are kept."""
    return f"content/{digest[:2]}/{digest}"


def table_key(digest: Digest) -> str:
    """Where the table with that digest is kept."""
    return f"tables/{digest[:2]}/{digest}.parquet"


def store() -> Store:
    """The bucket named by MODELMINT_BUCKET (default `modelmint`), at AWS_ENDPOINT_URL if set."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID")
    bucket = os.environ.get(BUCKET_SETTING, "modelmint")
    return _connected(bucket, *(os.environ.get(name, "") for name in names))


@cache
def _connected(bucket: str, *_environment: str) -> Store:
    """One client for what the environment names now; boto3 reads the rest of it by itself."""
    import boto3
    import botocore.session
    from botocore.config import Config

    # A session of its own: the default one keeps the credentials it saw first.
    session = botocore.session.get_session()
    # Times stay text: nothing here reads one, and most of a listing's cost was to parse them.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    client: S3Client = boto3.session.Session(botocore_session=session).client(
        "s3",
        config=Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"total_max_attempts": 4, "mode": "standard"},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return Store(client, bucket)
