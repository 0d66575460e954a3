"""Content digests: canonical JSON, tables by their column buffers, folders by their manifest.

Digests never cover a container (Parquet bytes, zip order, file times): two files that hold the
same values have the same digest, whatever wrote them. BLAKE3 throughout, as lower-case hex.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import blake3
import rfc8785
from pydantic import Field, StringConstraints

from models.open import Frozen

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


class IntegrityError(ValueError):
    """Content does not have the digest that was recorded for it."""


def bytes_digest(content: bytes | bytearray | memoryview) -> Digest:
    """The BLAKE3 digest of the content, 64 hex characters."""
    return blake3.blake3(content).hexdigest()


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value; raises ValueError for NaN, infinities and other types."""
    return rfc8785.dumps(value)


def json_digest(value: Any) -> Digest:
    """The digest of a JSON value's canonical form."""
    return bytes_digest(canonical_json(value))


class File(Frozen):
    """One file of a folder: its size in bytes and its digest."""

    size: int = Field(ge=0)
    blake3: Digest


class Manifest(Frozen):
    """The files of a folder; its canonical JSON names the folder by one digest."""

    files: dict[FileName, File]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "Manifest":
        """The manifest of the given files."""
        return cls(
            files={n: File(size=len(c), blake3=bytes_digest(c)) for n, c in sorted(files.items())}
        )

    @property
    def digest(self) -> Digest:
        """The digest of the canonical manifest."""
        return json_digest(self.model_dump(mode="json"))

    def check(self, name: str, content: bytes) -> None:
        """Raise IntegrityError unless `content` is what the manifest says `name` holds."""
        wanted = self.files.get(name)
        if wanted is None:
            raise IntegrityError(f"{name}: not named by the manifest {self.digest[:12]}")
        found = bytes_digest(content)
        if found != wanted.blake3:
            raise IntegrityError(
                f"{name}: content has digest {found[:12]}, the manifest {self.digest[:12]} says"
                f" {wanted.blake3[:12]}; it was altered or cut short: fetch it again"
            )
