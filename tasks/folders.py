"""The folder of a registered version, in the store or on this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from models.digests import Digest, IntegrityError
from tasks.promotion import version_folder
from tasks.store import MissingError, store

REPLAYS = "replays/"


class Folder(Protocol):
    """Files by name, and the names of the replays below it."""

    def read(self, name: str, limit: int) -> bytes:
        """The content; raises IntegrityError when it is absent or over `limit` bytes."""

    def replays(self) -> Iterable[str]:
        """Names of the signed replays, oldest first."""


class StoredFolder:
    """The folder of the version with this digest, in the store."""

    def __init__(self, line: str, digest: Digest) -> None:
        self.prefix = version_folder(line, digest)

    def read(self, name: str, limit: int) -> bytes:
        """The content; raises IntegrityError when it is absent or over `limit` bytes."""
        try:
            return _within(name, store().get(self.prefix + name).content, limit)
        except MissingError as error:
            raise IntegrityError(f"{name} is missing: {error}") from None

    def replays(self) -> Iterable[str]:
        """Names of the signed replays, oldest first."""
        found = store().list(self.prefix + REPLAYS)
        return [item.key.removeprefix(self.prefix) for item in found]


class LocalFolder:
    """An exported version."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str, limit: int) -> bytes:
        """The content; raises IntegrityError when it is absent or over `limit` bytes."""
        try:
            with (self.path / name).open("rb") as stream:
                return _within(name, stream.read(limit + 1), limit)
        except OSError as error:
            raise IntegrityError(f"{self.path / name} cannot be read: {error.strerror}") from None

    def replays(self) -> Iterable[str]:
        """Names of the signed replays, oldest first."""
        return [f"{REPLAYS}{path.name}" for path in sorted((self.path / REPLAYS).glob("*.json"))]


def _within(name: str, content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise IntegrityError(f"{name} is larger than the {limit:,} bytes it may have")
    return content
