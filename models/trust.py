"""Whose signatures count here: a folder with one public key a file, as people put them there.

`<folder>/trusted/<key id>.json` is a key that is trusted, `<folder>/signing.pem` the private key of
this place. Read anew for every question, so that a key added or revoked counts at once.
"""

import datetime
import os
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from models.open import Frozen

KEYS_SETTING = "MODELMINT_KEYS"
TRUSTED = "trusted"
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class TrustError(ValueError):
    """A key file cannot be read or used; the message names it."""


class PublicKey(Frozen):
    """An ed25519 key whose signatures count until it expires."""

    keyid: KeyId
    public: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The 32 bytes of the public key, in hex."""
    owner: str = Field("", max_length=200)
    """Whose key it is, in the words of who added it."""
    expires: datetime.date | None = None
    """The first day, in UTC, on which nothing it signed counts any more."""
    scheme: Literal["ed25519"] = "ed25519"

    @property
    def expired(self) -> bool:
        """Whether its last day is over."""
        today = datetime.datetime.now(datetime.UTC).date()
        return self.expires is not None and today >= self.expires


class Trust:
    """The trusted keys of a folder; raises TrustError for a file that is no key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[PublicKey]:
        """Every key that was added, also those that expired."""
        files = sorted((self.folder / TRUSTED).glob("*.json"))
        return [self._read(path) for path in files]

    def keys(self, keyids: Container[str]) -> list[PublicKey]:
        """Those of the named keys that count today."""
        return [key for key in self.all() if key.keyid in keyids and not key.expired]

    def expired(self, keyids: Container[str]) -> list[PublicKey]:
        """Those of the named keys that counted once."""
        return [key for key in self.all() if key.keyid in keyids and key.expired]

    def _read(self, path: Path) -> PublicKey:
        try:
            key = PublicKey.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise TrustError(f"{path} is no public key: mend or remove it ({error})") from None
        if path.stem != key.keyid:
            raise TrustError(f"{path} holds key {key.keyid[:12]}: its name must be the key's id")
        return key


def trust() -> Trust:
    """The trust of this place: the folder named by MODELMINT_KEYS, by default `.modelmint/keys`."""
    return Trust(Path(os.environ.get(KEYS_SETTING, ".modelmint/keys")))
