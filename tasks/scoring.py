"""How a registered version scores raw objects, and what is said of each object's output."""

from pydantic import SerializeAsAny

from models.data import Data
from models.digests import Digest, json_digest
from models.open import Frozen
from models.version import Verified
from tasks.identity import code_here
from tasks.recorded import ChangedCodeError, recorded_line
from tasks.refs import Refusal
from tasks.served import Served
from tasks.snapshot import raw_prefix
from tasks.store import MissingError, store


class Source(Frozen):
    """One object of the bucket as it was listed."""

    key: str
    etag: str


class Scoring(Frozen):
    """A version, and how raw objects become its inputs."""

    served: Served
    data: SerializeAsAny[Data]
    references: dict[str, Source]
    output: str
    """Key prefix of what is written."""

    def address(self, source: Source) -> Digest:
        """What the output of an object is a function of."""
        joined = {name: one.etag for name, one in self.references.items()}
        return json_digest([source.key, source.etag, self.served.digest, joined])

    def place(self, source: Source) -> str:
        """The output's key, without its ending."""
        return f"{self.output}{source.key}/{self.address(source)[:32]}"


class ScoredObject(Frozen):
    """The counts of one object's output; rows = scored + refused."""

    key: str
    etag: str
    output: str | None
    """Key of its Parquet file; None when the object as a whole could not be read."""
    blake3: Digest | None
    rows: int
    scored: int
    refusals: tuple[Refusal, ...]


def scoring(served: Served, found: Verified, output: str | None = None) -> Scoring:
    """How a proven version scores raw objects; `output` is `scored/<line>/<digest>/` by default.

    Raises ChangedCodeError when the line's cleaning is not the one the version was made with,
    MissingError when a reference table is not there, ValueError for a line that generates.
    """
    if served.signature().objective.steps:
        raise ValueError(
            f"{served.line} generates, and no row says how long: ask it through the model server"
        )
    line = recorded_line(found.recipe)
    for name, digest in found.recipe.stages["clean"].identity.code.items():
        # The functions of a line: to clean otherwise would answer from other features.
        if ":" in name and code_here(name) != digest:
            raise ChangedCodeError(
                f"{name} has changed since {served.line} version {served.number} was made: produce"
                " a new version, or score from the checkout that made it"
            )
    prefix, default = raw_prefix(line.data), f"scored/{served.line}/{served.digest[:16]}"
    return Scoring(
        served=served,
        data=line.data,
        references={name: _found(prefix + at) for name, at in line.data.joined.items()},
        output=f"{(output or default).rstrip('/')}/",
    )


def _found(key: str) -> Source:
    listed = next((item for item in store().list(key) if item.key == key), None)
    if listed is None:
        raise MissingError(f"{store().uri(key)} is missing: land the reference table")
    return Source(key=key, etag=listed.etag)
