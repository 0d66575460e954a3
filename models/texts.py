"""Texts with a label each: lines of UTF-8 files in folders named by class, or CSV records."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from models.data import (
    REFUSED,
    Check,
    Data,
    Features,
    Parsed,
    RefusedObject,
    RefusedRequest,
    Tensors,
)
from models.records import read_records
from models.tensors import TensorSpec
from models.vocabulary import Characters, Vocabulary, described

TEXT = "text"
LONGEST = 100_000
MOST_TEXTS = 1024


def plain(payload: bytes) -> str:
    """UTF-8 as text in Unicode's composed form, lines ended by newlines; raises ValueError."""
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def tidy(text: str) -> str:
    """A text without white space around it, and single spaces inside."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextFeatures(Features):
    """One tensor: `tokens` INT64 [n, length], 0 after the end of a text; longer ones are cut."""

    vocabulary: SerializeAsAny[Vocabulary]
    length: int = Field(ge=1, le=65_536)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="tokens", datatype="INT64", shape=(-1, self.length)),)

    def encode(self, rows: pl.DataFrame) -> Tensors:
        texts = rows.get_column(TEXT).to_list()
        return {"tokens": self.vocabulary.rows(texts, self.length, beginning=False)}

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """One text (`text/plain`), or JSON: a string, `{"text": …}`, or a list of those."""
        found: Any = payload
        if media_type == "application/json":
            try:
                found = orjson.loads(payload)
            except orjson.JSONDecodeError as error:
                raise RefusedRequest(f"not readable as {media_type}: {error}") from None
        elif media_type != "text/plain":
            raise RefusedRequest(f"{media_type} is neither text/plain nor application/json")
        records = found if isinstance(found, list) else [found]
        if len(records) > MOST_TEXTS:
            raise RefusedRequest(f"{len(records):,} texts are over {MOST_TEXTS:,}")
        return pl.DataFrame({TEXT: [self._text(r) for r in records]}, schema={TEXT: pl.String})

    def _text(self, record: Any) -> str:
        if isinstance(record, dict) and set(record) == {TEXT}:
            record = record[TEXT]
        if isinstance(record, bytes):
            try:
                record = plain(record)
            except ValueError as error:
                raise RefusedRequest(str(error)) from None
        if not isinstance(record, str):
            raise RefusedRequest(f'a text is a string or {{"{TEXT}": string}}')
        if len(record) > LONGEST:
            raise RefusedRequest(f"{len(record):,} characters are over {LONGEST:,}")
        text = tidy(record)
        if not text:
            raise RefusedRequest("the text is empty")
        return text

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """The text."""
        text: str = row.get_column(TEXT)[0]
        return text.encode(), "text/plain"

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """Length, and the share of unknown tokens."""
        return described(tensors["tokens"])

    def slices(self, rows: pl.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Short texts, and those that the network does not see the end of."""
        length = rows.get_column(TEXT).str.len_chars().to_numpy()
        yield f"length=to {self.length // 4}", length <= self.length // 4
        yield f"length=over {self.length}", length > self.length


class Texts(Data):
    """Objects `<class>/<name>.txt` with one text a line, or CSV with the columns text and label.

    Texts that differ in white space only are the same. One that is there under several labels
    teaches nothing: all its records are quarantined.
    """

    contradictions: ClassVar[bool] = True
    vocabulary: SerializeAsAny[Vocabulary] = Characters(minimum=2)
    length: int = Field(200, ge=1, le=65_536)
    """Tokens of a text that the network sees."""
    identity: tuple[str, ...] = (TEXT,)
    suffixes: tuple[str, ...] = (".txt", ".csv")
    label: str = "label"
    """Name of the column that holds the class."""

    @property
    def kept(self) -> tuple[str, ...]:
        return (TEXT,)

    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        del references
        if not (name.endswith(".csv") or PurePosixPath(name).parent.name or not payload):
            raise RefusedObject(f"{name} is in no folder named by its class")
        return self._parsed(name, payload, {TEXT: pl.String, self.label: pl.String})

    def parse_unlabelled(
        self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame], target: str
    ) -> Parsed:
        """As `parse`; neither a column nor a folder has to name the class."""
        del references, target
        return self._parsed(name, payload, {TEXT: pl.String})

    def _parsed(self, name: str, payload: bytes, types: dict[str, type[pl.DataType]]) -> Parsed:
        if not payload:
            raise RefusedObject("the object is empty")
        if name.endswith(".csv"):
            found = read_records(name, payload, types)
            rows, refused = found.rows, found.refused
            if self.label not in types:
                rows = rows.with_columns(pl.lit(None, pl.String).alias(self.label))
        else:
            label = PurePosixPath(name).parent.name
            try:
                texts = plain(payload).removesuffix("\n").split("\n")
            except ValueError as error:
                raise RefusedObject(str(error)) from None
            rows = pl.DataFrame({TEXT: texts}).with_row_index("row")
            rows = rows.with_columns(pl.lit(label).alias(self.label))
            refused = pl.DataFrame(schema=REFUSED)
        return Parsed(_tidied(rows), refused)

    def checks(self) -> Sequence[Check]:
        text = pl.col(TEXT)
        reason = f"over {LONGEST:,} characters"
        return [
            Check(TEXT, "empty", text.str.len_bytes() > 0),
            Check(TEXT, reason, text.str.len_chars() <= LONGEST),
        ]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.summarise(rows.get_column(TEXT))}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> TextFeatures:
        vocabulary = self.vocabulary.fit([s["vocabulary"] for s in summaries])
        return TextFeatures(vocabulary=vocabulary, length=self.length)


def _tidied(rows: pl.DataFrame) -> pl.DataFrame:
    texts = [None if text is None else tidy(text) for text in rows.get_column(TEXT)]
    return rows.with_columns(pl.Series(TEXT, texts, pl.String))
