"""The contract of a data kind: how raw objects become checked rows, and rows become tensors."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from models.open import Open
from models.splits import Split
from models.tensors import TensorSpec

REFUSED = {"row": pl.UInt32, "field": pl.String, "reason": pl.String}
Tensors = dict[str, NDArray[Any]]


class RefusedObject(ValueError):
    """A raw object that cannot be read at all; the message is the reason it is quarantined for."""


class RefusedRequest(ValueError):
    """A payload sent for prediction that the features cannot be read from; names what is wrong."""


class Check(NamedTuple):
    """A condition every row must meet: rows where `holds` is not true are quarantined."""

    field: str
    reason: str
    holds: pl.Expr


class Piece(NamedTuple):
    """A part of a raw object that is a raw object itself: its first record's number, its bytes."""

    first: int
    payload: bytes


@dataclass(frozen=True)
class Parsed:
    """What was read from one raw object.

    `rows` has a UInt32 column `row` (0 is the first record); `refused` has the columns of
    `REFUSED`. A record is in exactly one of the two.
    """

    rows: pl.DataFrame
    refused: pl.DataFrame


class Features(Open):
    """Fitted preprocessing: travels with a version, used alike in training and in serving."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors `encode` gives and the network takes, in this order."""

    @property
    def asked(self) -> tuple[TensorSpec, ...]:
        """What `encode` also gives of a request, for the objective alone; mostly none."""
        return ()

    @property
    def state(self) -> TensorSpec | None:
        """The input a served network gives back changed, as `next_state`; mostly none."""
        return None

    def carrying(self, values: int) -> Self:
        """These features with a state of so many values among the inputs; raises TypeError."""
        raise TypeError(f"{type(self).__name__} have no state of {values} values")

    @abstractmethod
    def encode(self, rows: pl.DataFrame) -> Tensors:
        """Tensors of the cleaned rows; the first dimension of each is the number of rows."""

    @abstractmethod
    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """Rows from what a person sends; raises RefusedRequest."""

    def request(self, payload: bytes, media_type: str) -> tuple[Tensors, int]:
        """What a person sends as tensors, and its number of rows; raises RefusedRequest."""
        rows = self.read(payload, media_type)
        if not rows.height:
            raise RefusedRequest("the request holds no record")
        return self.encode(rows), rows.height

    @abstractmethod
    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """One cleaned row as a payload `read` takes, and its media type."""

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """What drift is looked for in: Float64 and String columns, a row for each encoded one.

        Unless overridden the mean and the deviation of each row of each tensor.
        """
        columns: dict[str, NDArray[np.float64]] = {}
        for name, tensor in tensors.items():
            flat = tensor.reshape(len(tensor), -1).astype(np.float64)
            columns |= {f"{name} mean": flat.mean(axis=1), f"{name} deviation": flat.std(axis=1)}
        return pl.DataFrame(columns)

    def slices(self, rows: pl.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Named groups of rows whose quality is reported apart; none unless overridden."""
        del rows
        yield from ()


class Data(Open):
    """Where a line's raw objects are and how they are read, checked, split and fitted."""

    contradictions: ClassVar[bool] = False
    """Whether a record seen with several targets is quarantined everywhere, not only repeated."""
    raw: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*/$")
    """Prefix of the raw objects below `raw/` in the bucket."""
    suffixes: tuple[str, ...] = Field(min_length=1)
    """Endings of the object names that are data; other objects are quarantined unread."""
    references: dict[str, str] = {}
    """Small tables given whole to every partition: name -> object name below the raw prefix."""
    identity: tuple[str, ...] = Field(min_length=1)
    """The columns that tell one record from another; a record seen before is quarantined."""
    split: SerializeAsAny[Split]
    """How rows are assigned to training, validation and test."""

    @property
    @abstractmethod
    def kept(self) -> tuple[str, ...]:
        """Columns of a cleaned partition besides identity and target."""

    @abstractmethod
    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        """Read one raw object; raises RefusedObject when nothing in it can be read."""

    def parse_unlabelled(
        self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame], target: str
    ) -> Parsed:
        """As `parse`, where the object need not have the column `target` and it means nothing."""
        del target
        return self.parse(name, payload, references)

    def pieces(self, name: str, path: Path, size: int) -> Iterator[Piece]:
        """A raw object on disk as raw objects of about `size` bytes; one unless overridden.

        Raises RefusedObject when it cannot be divided because it is damaged.
        """
        del name, size
        yield Piece(0, path.read_bytes())

    @property
    def joined(self) -> Mapping[str, str]:
        """The references that features come from, and not only targets."""
        return self.references

    @abstractmethod
    def checks(self) -> Sequence[Check]:
        """The conditions every parsed row must meet."""

    @abstractmethod
    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        """Statistics of some cleaned rows as a JSON value, to be combined by `fit`."""

    @abstractmethod
    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Features:
        """Fitted features from the summaries of the training rows, in canonical order.

        Raises ValueError when a feature has no value in any training row.
        """

    def reference(self, name: str, payload: bytes) -> pl.DataFrame:
        """The table a reference object holds; raises RefusedObject when it cannot be read."""
        del payload
        raise RefusedObject(f"reference {name}: {type(self).__name__} takes none")
