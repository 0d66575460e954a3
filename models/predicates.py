"""What is read of a signed statement, typed: a predicate is data of others until it fits here.

Sources: SLSA Provenance v1, in-toto Test Result v0.1. By in-toto's parsing rules a reader ignores
fields it does not know; those that are used must be there and be what they must be.
"""

from typing import Literal, TypeVar

from pydantic import ConfigDict, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from models.attestation import Resource, Statement
from models.digests import Digest, IntegrityError
from models.open import Frozen, first

BUILD_TYPE = "urn:modelmint:produce:2"
LOCKED = "pkg:pypi/"


class _Read(Frozen):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )


P = TypeVar("P", bound=_Read)


class Machine(_Read):
    """Where something was computed."""

    processor: str


class _Parameters(_Read):
    recipe: dict[str, JsonValue]
    located: Digest
    """The table that says which version of each raw object was read."""


class _Definition(_Read):
    build_type: Literal["urn:modelmint:produce:2"]
    internal_parameters: _Parameters
    resolved_dependencies: tuple[Resource, ...]


class _Metadata(_Read):
    invocation_id: str
    """The Prefect flow run."""
    finished_on: str


class _Details(_Read):
    model_config = ConfigDict(alias_generator=None)

    metadata: _Metadata
    modelmint_machine: Machine


class Provenance(_Read):
    """How a version came to be."""

    build_definition: _Definition
    run_details: _Details

    @property
    def recipe(self) -> dict[str, JsonValue]:
        """The recipe as the signer had it."""
        return self.build_definition.internal_parameters.recipe

    @property
    def located(self) -> Digest:
        """The table that says which version of each raw object was read."""
        return self.build_definition.internal_parameters.located

    def dependency(self, name: str) -> Resource:
        """A dependency by name; raises IntegrityError."""
        found = [d for d in self.build_definition.resolved_dependencies if d.name == name]
        if len(found) != 1:
            raise IntegrityError(f"the signed provenance names {len(found)} dependencies {name!r}")
        return found[0]

    def lock(self) -> dict[str, str]:
        """Every distribution that was installed, by name: its version."""
        uris = [d.uri for d in self.build_definition.resolved_dependencies]
        pairs = (uri.removeprefix(LOCKED).partition("@") for uri in uris if uri.startswith(LOCKED))
        return {name: version for name, _, version in pairs}


class GateVerdict(_Read):
    """The gate's word, as far as it is read."""

    decision: Literal["promote", "hold", "refuse"]
    reasons: tuple[str, ...]
    metrics: dict[str, float]


class _Detail(_Read):
    at: str
    machine: Machine
    gate: GateVerdict | None = None


class Outcome(_Read):
    """in-toto's test result: what was found of a version."""

    model_config = ConfigDict(alias_generator=None)

    result: Literal["PASSED", "WARNED", "FAILED"]
    modelmint_detail: _Detail


def typed(statement: Statement, kind: type[P]) -> P:
    """The statement's predicate; raises IntegrityError naming the field that does not fit."""
    try:
        return kind.model_validate(statement.predicate)
    except ValidationError as error:
        raise IntegrityError(f"what was signed does not fit: {first(error, 'predicate')}") from None
