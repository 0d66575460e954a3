"""What a version is: its recipe, typed, and its folder, proven before anything in it is parsed.

The version digest is the digest of the recipe's canonical JSON. A field here is hashed; what is
only recorded (times, machine, which attempt) is in the provenance. `kind` names the rules: another
rule for any digest is another kind, and the kinds of earlier releases still verify.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import orjson
from pydantic import JsonValue, ValidationError, model_validator

from models.attestation import PROVENANCE, Statement, verified
from models.digests import Digest, IntegrityError, Manifest, json_digest
from models.open import Frozen
from models.signature import (
    MANIFEST_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    VERSION_FILE,
)
from models.trust import Trust

LARGEST_JSON, LARGEST_FILE = 64 << 20, 2 << 30

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
    line: str
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


def record(recipe: Recipe) -> dict[str, JsonValue]:
    """The content of `version.json`."""
    return {"digest": recipe.digest, "body": recipe.model_dump(mode="json")}


def read_verified(
    read: Reader, trust: Trust, line: str | None = None, digest: Digest | None = None
) -> Verified:
    """The version with this digest, or without one whatever is signed there.

    First the signature, then the digests it names, only then is a file parsed. Raises
    IntegrityError, and UntrustedError where it is for the signature.
    """
    envelope = read(PROVENANCE_FILE, LARGEST_JSON)
    statement = verified(envelope, trust, predicate=PROVENANCE)
    files = {PROVENANCE_FILE: envelope}

    def proven(name: str, limit: int) -> bytes:
        subject = statement.about(name)
        files[name] = read(name, limit)
        subject.check(files[name])
        return files[name]

    recipe = _recipe(proven(VERSION_FILE, LARGEST_JSON), line, digest)
    manifest = _manifest(proven(MANIFEST_FILE, LARGEST_JSON), recipe.artifact)
    for name in (MODEL_FILE, SIGNATURE_FILE, SAMPLE_FILE):
        if name not in manifest.files:
            raise IntegrityError(f"the manifest {recipe.artifact[:12]} names no {name}")
        content = proven(name, min(manifest.files[name].size, LARGEST_FILE))
        manifest.check(name, content)
    return Verified(recipe=recipe, manifest=manifest, statement=statement, files=files)


def _recipe(content: bytes, line: str | None, digest: Digest | None) -> Recipe:
    try:
        record = orjson.loads(content)
        stated, body = record["digest"], record["body"]
        recipe = Recipe.model_validate(body)
    except (ValueError, KeyError, TypeError) as error:
        said = _first(error)
        raise IntegrityError(f"{VERSION_FILE} is no recipe this release knows: {said}") from None
    found = json_digest(body)
    wanted = stated if digest is None else digest
    if not wanted == found == stated:
        raise IntegrityError(
            f"{VERSION_FILE}: the recipe has digest {found[:12]}, asked for is {wanted[:12]}; it is"
            " another version or was altered"
        )
    if line not in (None, recipe.line):
        raise IntegrityError(f"{VERSION_FILE} belongs to line {recipe.line[:60]!r}, not {line!r}")
    return recipe


def _manifest(content: bytes, artifact: Digest) -> Manifest:
    try:
        listed = orjson.loads(content)
        manifest = Manifest.model_validate(listed)
    except ValueError as error:
        raise IntegrityError(
            f"{MANIFEST_FILE} is no manifest this release knows: {_first(error)}"
        ) from None
    if json_digest(listed) != artifact:
        raise IntegrityError(f"{MANIFEST_FILE} is not the one {VERSION_FILE} names")
    return manifest


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        one = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
    return str(error)
