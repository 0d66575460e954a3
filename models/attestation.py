"""Signed statements about files: in-toto Statement v1 in a DSSE envelope, signed with ed25519.

Sources: in-toto Attestation Framework v1, SLSA Provenance v1, in-toto Test Result v0.1, Dead Simple
Signing Envelope v1. securesystemslib signs; nothing of a payload is parsed before one of its
signatures is proven to be a trusted key's.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, ValidationError

from models.digests import IntegrityError, bytes_digest, canonical_json
from models.dsse import Envelope
from models.open import Frozen, first
from models.trust import PublicKey, Trust

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


class UntrustedError(IntegrityError):
    """A statement is not signed by a key that is trusted here."""


class Resource(Frozen):
    """in-toto ResourceDescriptor: a thing by its digests, by algorithm."""

    # By the framework's parsing rules a reader ignores what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, JsonValue] = {}

    def check(self, content: bytes) -> None:
        """Raise IntegrityError unless the content has every digest named here, and one is."""
        algorithms = {"sha256": lambda c: hashlib.sha256(c).hexdigest(), "blake3": bytes_digest}
        known = {name: value for name, value in self.digest.items() if name in algorithms}
        if not known:
            raise IntegrityError(f"{self.name}: the statement names no digest that is known here")
        for algorithm, wanted in known.items():
            found = algorithms[algorithm](content)
            if found != wanted:
                raise IntegrityError(
                    f"{self.name}: content has {algorithm} {found[:12]}, signed is {wanted[:12]};"
                    " it was altered, swapped or cut short: fetch it again"
                )


class Statement(Frozen):
    """in-toto Statement v1: something said about its subjects."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    kind: Literal["https://in-toto.io/Statement/v1"] = Field(
        "https://in-toto.io/Statement/v1", alias="_type"
    )
    subject: tuple[Resource, ...]
    predicate_type: str = Field(alias="predicateType")
    predicate: dict[str, Any]

    def about(self, name: str) -> Resource:
        """The subject of that name; raises IntegrityError when the statement has none."""
        found = next((s for s in self.subject if s.name == name), None)
        if found is None:
            raise IntegrityError(f"{name}: the signed statement does not name it")
        return found


def described(name: str, content: bytes) -> Resource:
    """A file as a subject: SHA-256 for other tools, BLAKE3 for ours."""
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "blake3": bytes_digest(content)}
    return Resource(name=name, digest=digest)


def signed(statement: Statement, signers: Iterable["Signer"]) -> bytes:
    """The DSSE envelope of the statement as JSON; the bytes repeat exactly for the same keys."""
    from securesystemslib.dsse import Envelope as Signing

    value = statement.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    payload = canonical_json({"_type": statement.kind, **value})
    envelope = Signing(payload, PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    return canonical_json(envelope.to_dict())


def verified(envelope: bytes, trust: Trust, *, predicate: str) -> Statement:
    """The statement in an envelope that a trusted key signed; raises UntrustedError."""
    try:
        found = Envelope.model_validate_json(envelope)
    except ValidationError as error:
        raise UntrustedError(
            f"this is no DSSE envelope ({first(error)}): it cannot be trusted"
        ) from None
    if found.payload_type != PAYLOAD_TYPE:
        raise UntrustedError(f"the envelope holds {found.payload_type[:60]!r}, not {PAYLOAD_TYPE}")
    if not found.signatures:
        raise UntrustedError("the envelope carries no signature: it was stripped or never signed")
    keys = trust.keys(found.keyids)
    if not found.signers(keys):
        raise UntrustedError(_why(keys, found.keyids, trust))
    try:
        statement = Statement.model_validate_json(found.payload)
    except ValidationError as error:
        raise UntrustedError(f"what was signed is no in-toto statement: {first(error)}") from None
    if statement.predicate_type != predicate:
        raise UntrustedError(
            f"the statement is of type {statement.predicate_type[:80]!r}, wanted is {predicate}"
        )
    return statement


def _why(keys: list[PublicKey], named: list[str], trust: Trust) -> str:
    shown = ", ".join(keyid[:12] for keyid in named)
    if keys:
        return f"the signature of key {shown} does not fit: what was signed has been altered"
    expired = trust.expired(named)
    if expired:
        return f"key {expired[0].keyid[:12]} expired on {expired[0].expires}: sign it again"
    return (
        f"signed by key {shown}, which is not trusted here: compare it with its owner's and add it"
        " with `modelmint trust add`"
    )
