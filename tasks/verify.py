"""Verify a version: whose word it is, and that every file is the one that was signed.

Needs the folder and the trusted keys, no network and no other service.
"""

from models.attestation import TEST_RESULT, verified
from models.digests import Digest, IntegrityError
from models.dsse import Envelope
from models.open import Frozen
from models.predicates import GateVerdict, Outcome, typed
from models.signature import PROVENANCE_FILE, VERDICT_FILE, VERSION_FILE
from models.trust import PublicKey, trust
from models.version import LARGEST_FILE, LARGEST_JSON, Verified, read_verified
from tasks.folders import Folder


class Testimony(Frozen):
    """What a signed test result says of a version."""

    result: str
    at: str
    machine: str


class Verification(Frozen):
    """What is proven of a version."""

    line: str
    digest: Digest
    signed_by: tuple[str, ...]
    """Ids of the trusted keys that signed the provenance."""
    files: int
    bytes: int
    verdict: Testimony | None
    replays: tuple[Testimony, ...]


def verify(folder: Folder, line: str | None = None, digest: Digest | None = None) -> Verification:
    """Prove signature, provenance and all digests; raises IntegrityError naming the file."""
    return testified(folder, proven(folder, line, digest))


def testified(folder: Folder, found: Verified) -> Verification:
    """What was said of a proven version since, each signature checked; raises IntegrityError."""
    judged = _judged(folder, found)
    replays = [_testimony(folder, name, found) for name in folder.replays()]
    return Verification(
        line=found.recipe.line,
        digest=found.recipe.digest,
        signed_by=tuple(_named(key) for key in signers(found)),
        files=len(found.files),
        bytes=sum(len(content) for content in found.files.values()),
        verdict=_said(judged) if judged else None,
        replays=tuple(_said(replay) for replay in replays),
    )


def proven(folder: Folder, line: str | None = None, digest: Digest | None = None) -> Verified:
    """The version with the content of every file its provenance names; raises IntegrityError."""
    found = read_verified(folder.read, trust(), line, digest)
    if found.provenance.recipe != found.recipe.model_dump(mode="json"):
        raise IntegrityError(f"{PROVENANCE_FILE}: its recipe is not the one of {VERSION_FILE}")
    files = dict(found.files)
    for subject in found.statement.subject:
        if subject.name not in files:
            files[subject.name] = folder.read(subject.name, LARGEST_FILE)
            subject.check(files[subject.name])
    return found.model_copy(update={"files": files})


def verdict_of(folder: Folder, found: Verified) -> GateVerdict | None:
    """The gate's verdict as it was signed, None when there is none; raises IntegrityError."""
    judged = _judged(folder, found)
    if judged is None:
        return None
    if judged.modelmint_detail.gate is None:
        raise IntegrityError(f"{VERDICT_FILE}: predicate.modelmint_detail.gate is missing")
    return judged.modelmint_detail.gate


def signers(found: Verified) -> list[PublicKey]:
    """The trusted keys that signed the provenance."""
    return signers_of(found.files[PROVENANCE_FILE])


def signers_of(envelope: bytes) -> list[PublicKey]:
    """The trusted keys whose signature of an envelope fits."""
    signed = Envelope.model_validate_json(envelope)
    return signed.signers(trust().keys(signed.keyids))


def _judged(folder: Folder, found: Verified) -> Outcome | None:
    try:
        folder.read(VERDICT_FILE, LARGEST_JSON)
    except IntegrityError:
        return None
    return _testimony(folder, VERDICT_FILE, found)


def _testimony(folder: Folder, name: str, found: Verified) -> Outcome:
    """A signed test result of this very version."""
    try:
        statement = verified(folder.read(name, LARGEST_JSON), trust(), predicate=TEST_RESULT)
        statement.about(VERSION_FILE).check(found.files[VERSION_FILE])
        return typed(statement, Outcome)
    except IntegrityError as error:
        raise type(error)(f"{name}: {error}") from None


def _said(outcome: Outcome) -> Testimony:
    detail = outcome.modelmint_detail
    return Testimony(result=outcome.result, at=detail.at, machine=detail.machine.processor)


def _named(key: PublicKey) -> str:
    return f"{key.keyid[:16]} ({key.owner})" if key.owner else key.keyid[:16]
