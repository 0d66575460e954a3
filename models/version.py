"""What a version is: its recipe, typed, and its folder, proven before anything in it is parsed.

The version digest is the digest of the recipe's canonical JSON. A field here is hashed; what is
only recorded (times, machine, which attempt) is in the provenance. `kind` names the rules: another
rule for any digest is another kind, and the kinds of earlier releases still verify.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import JsonValue, StringConstraints, TypeAdapter, model_validator

from models.attestation import PROVENANCE, Statement, verified
from models.digests import Digest, FileName, IntegrityError, Manifest, canonical_json, json_digest
from models.open import Frozen, first
from models.predicates import Provenance, typed
from models.signature import (
    MANIFEST_FILE,
    PROVENANCE_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    VERDICT_FILE,
    VERSION_FILE,
    network_file,
)
from models.trust import Trust

LARGEST_JSON, LARGEST_FILE = 64 << 20, 2 << 30
FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)

Reader = Callable[[str, int], bytes]
"""Content of the named file; raises IntegrityError when it is absent or over the given size."""


class StageIdentity(Frozen):
    """What the output of one stage is a function of; the stage key is its digest."""

    kind: Literal["modelmint.stage/2"] = "modelmint.stage/2"
    stage: str
    arguments: dict[str, JsonValue]
    code: dict[str, Digest]
    """First-party modules and functions -> digest of their syntax tree."""
    distributions: dict[str, str]
    python: str
    libc: str
    machine: str


class StageRecord(Frozen):
    """One stage of a version: what it was a function of, and what came out."""

    identity: StageIdentity
    key: Digest
    digest: Digest
    fingerprint: dict[str, Digest] = {}
    """For each library that computes: the digest of a few of its results where the stage ran. What
    the last bits of a number depend on beside code and libraries: processor, numeric profile."""

    @model_validator(mode="after")
    def _is_its_key(self) -> "StageRecord":
        if self.key != json_digest(self.identity.model_dump(mode="json")):
            raise ValueError(f"the key of stage {self.identity.stage} is not its identity's digest")
        return self


class Recipe(Frozen):
    """Everything a version is a function of, and the digests it led to."""

    kind: Literal["modelmint.version/2"] = "modelmint.version/2"
    line: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{1,40}$")]
    snapshot: Digest
    settings: dict[str, JsonValue]
    stages: dict[str, StageRecord]
    artifact: Digest
    """Digest of the manifest of the served files."""

    @property
    def digest(self) -> Digest:
        """The version digest."""
        return json_digest(self.model_dump(mode="json"))


class Verified(Frozen):
    """A version whose signature and every digest are proven."""

    recipe: Recipe
    manifest: Manifest
    statement: Statement
    files: Mapping[str, bytes]

    @property
    def provenance(self) -> Provenance:
        """What the statement says, typed; raises IntegrityError naming the field that is wrong."""
        try:
            return typed(self.statement, Provenance)
        except IntegrityError as error:
            raise IntegrityError(f"{PROVENANCE_FILE}: {error}") from None


class Record(Frozen):
    """The content of `version.json`."""

    digest: Digest
    body: Recipe


def record(recipe: Recipe) -> dict[str, JsonValue]:
    """The content of `version.json`."""
    return Record(digest=recipe.digest, body=recipe).model_dump(mode="json")


def read_verified(
    read: Reader, trust: Trust, line: str | None = None, digest: Digest | None = None
) -> Verified:
    """The version with this digest, or without one whatever is signed there.

    First the signature, then the digests it names, only then is a file parsed. Raises
    IntegrityError, and UntrustedError where it is for the signature.
    """
    envelope = read(PROVENANCE_FILE, LARGEST_JSON)
    try:
        statement = verified(envelope, trust, predicate=PROVENANCE)
        _check_names([subject.name for subject in statement.subject])
    except IntegrityError as error:
        raise type(error)(f"{PROVENANCE_FILE}: {error}") from None
    files = {PROVENANCE_FILE: envelope}

    def proven(name: str, limit: int) -> bytes:
        subject = statement.about(name)
        files[name] = read(name, limit)
        subject.check(files[name])
        return files[name]

    recipe = proven_recipe(proven(VERSION_FILE, LARGEST_JSON), line, digest)
    manifest = _manifest(proven(MANIFEST_FILE, LARGEST_JSON), recipe.artifact)
    for name in (network_file(manifest.files), SIGNATURE_FILE, SAMPLE_FILE):
        if name not in manifest.files:
            raise IntegrityError(f"the manifest {recipe.artifact[:12]} names no {name}")
        content = proven(name, min(manifest.files[name].size, LARGEST_FILE))
        manifest.check(name, content)
    return Verified(recipe=recipe, manifest=manifest, statement=statement, files=files)


def _check_names(names: list[str]) -> None:
    """Raise IntegrityError unless each is the name of one file within the version's folder."""
    taken = {PROVENANCE_FILE, VERDICT_FILE}
    for name in names:
        try:
            FILE_NAME.validate_python(name)
        except ValueError:
            raise IntegrityError(f"subject {name[:100]!r} is no name of a file") from None
        if name in taken:
            raise IntegrityError(f"subject {name} stands for two files")
        taken.add(name)


def proven_recipe(content: bytes, line: str | None, digest: Digest | None) -> Recipe:
    """The recipe in a `version.json`; raises IntegrityError unless it is the one with the digest.

    Without a digest it has to be the one the file itself names.
    """
    listed = _listed(VERSION_FILE, content)
    try:
        record = Record.model_validate(listed)
    except ValueError as error:
        raise IntegrityError(
            f"{VERSION_FILE} is no recipe this release knows: {first(error)}"
        ) from None
    recipe, found = record.body, json_digest(listed["body"])
    wanted = record.digest if digest is None else digest
    if not wanted == found == record.digest:
        raise IntegrityError(
            f"{VERSION_FILE}: the recipe has digest {found[:12]}, asked for is {wanted[:12]}; it is"
            " another version or was altered"
        )
    if line not in (None, recipe.line):
        raise IntegrityError(f"{VERSION_FILE} belongs to line {recipe.line[:60]!r}, not {line!r}")
    return recipe


def _manifest(content: bytes, artifact: Digest) -> Manifest:
    listed = _listed(MANIFEST_FILE, content)
    try:
        manifest = Manifest.model_validate(listed)
    except ValueError as error:
        raise IntegrityError(
            f"{MANIFEST_FILE} is no manifest this release knows: {first(error)}"
        ) from None
    if json_digest(listed) != artifact:
        raise IntegrityError(f"{MANIFEST_FILE} is not the one {VERSION_FILE} names")
    return manifest


def _listed(name: str, content: bytes) -> Any:
    """The JSON of a file of ours; one that another reader might read otherwise is refused."""
    try:
        found = orjson.loads(content)
        canonical = canonical_json(found) == content
    except ValueError as error:
        raise IntegrityError(f"{name} is no JSON: {error}") from None
    if not canonical:
        raise IntegrityError(
            f"{name} is not in canonical form (RFC 8785): a field stands twice in it, or it was"
            " written by another tool"
        )
    return found
