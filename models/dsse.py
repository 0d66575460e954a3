"""Dead Simple Signing Envelope v1, verified: a payload, and who signed it, proven by ed25519.

Source: secure-systems-lab/dsse, `protocol.md` and `envelope.md`. securesystemslib signs, but to
import it brings the clients of every cloud's key store, which would be most of a server's start.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BeforeValidator, ConfigDict, Field

from models.open import Frozen
from models.trust import PublicKey


def _decoded(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("base64 text is expected")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64: {error}") from None


Base64 = Annotated[bytes, BeforeValidator(_decoded)]


class Signed(Frozen):
    """One signature, and the id of the key that is said to have made it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keyid: str
    sig: Base64


class Envelope(Frozen):
    """A payload with its signatures; nothing of it is proven before `signers` names a key."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    payload_type: str = Field(alias="payloadType")
    payload: Base64
    signatures: tuple[Signed, ...] = Field(max_length=100)

    @property
    def keyids(self) -> list[str]:
        """Ids of the keys that are said to have signed."""
        return [signature.keyid for signature in self.signatures]

    def signers(self, keys: Iterable[PublicKey]) -> list[PublicKey]:
        """Those of the keys of which one signature under their id fits."""
        encoded = self._encoded()
        return [
            key
            for key in keys
            if any(fits(key, s.sig, encoded) for s in self.signatures if s.keyid == key.keyid)
        ]

    def _encoded(self) -> bytes:
        """DSSE's PAE: the bytes that are signed, which no other type and payload share."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


def fits(key: PublicKey, signature: bytes, content: bytes) -> bool:
    """Whether the key made the signature over the content."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public)).verify(signature, content)
    except InvalidSignature:
        return False
    return True
