"""Running text: UTF-8 files cut into passages, each of which a language model reads from afresh."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import polars as pl
from pydantic import Field, SerializeAsAny, ValidationError

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
from models.generation import SAMPLING, Sampling
from models.tensors import TensorSpec
from models.texts import TEXT, plain
from models.vocabulary import Characters, Vocabulary, described

BLOCK = "block"
MOST_PROMPT = 10_000


class PassageFeatures(Features):
    """`tokens` INT64 [n, length + 1]: the beginning, the tokens of a passage, then 0.

    As served also `state` FP32 [n, values], what the network knows of the text before; zeros at a
    beginning. A request's `sampling` BYTES [n], JSON, is for the writing, not for the network.
    """

    vocabulary: SerializeAsAny[Vocabulary]
    length: int = Field(ge=1, le=65_536)
    values: int = Field(0, ge=0)
    """Values of the state; 0 where there is none, in training."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        tokens = TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1))
        return (tokens, self.state) if self.state else (tokens,)

    @property
    def asked(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name=SAMPLING, datatype="BYTES", shape=(-1,)),)

    @property
    def state(self) -> TensorSpec | None:
        return (
            TensorSpec(name="state", datatype="FP32", shape=(-1, self.values))
            if self.values
            else None
        )

    def carrying(self, values: int) -> "PassageFeatures":
        return self.model_copy(update={"values": values})

    def encode(self, rows: pl.DataFrame) -> Tensors:
        texts = rows.get_column(TEXT).to_list()
        found: Tensors = {"tokens": self.vocabulary.rows(texts, self.length + 1, beginning=True)}
        if self.values:
            found["state"] = np.zeros((len(texts), self.values), np.float32)
        if SAMPLING in rows.columns:
            found[SAMPLING] = np.array(rows.get_column(SAMPLING).to_list(), object)
        return found

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        """A prompt (`text/plain`), or `{"prompt": …, "characters": …, "temperature": …, …}`."""
        asked: dict[str, Any] = {}
        try:
            if media_type == "application/json":
                asked = orjson.loads(payload)
                prompt = asked.pop("prompt") if isinstance(asked, dict) else None
                if not isinstance(prompt, str):
                    raise RefusedRequest('the request must be {"prompt": string, …}')
                payload = prompt.encode()
            elif media_type != "text/plain":
                raise RefusedRequest(f"{media_type} is neither text/plain nor application/json")
            prompt, sampling = plain(payload), Sampling.model_validate(asked)
        except KeyError:
            raise RefusedRequest('the request must be {"prompt": string, …}') from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise RefusedRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except ValueError as error:
            raise RefusedRequest(f"not readable as {media_type}: {error}") from None
        return self.prompts([prompt], sampling)

    def prompts(self, prompts: Sequence[str], sampling: Sampling) -> pl.DataFrame:
        """Rows of prompts to be continued alike, their beginnings cut off where they are long.

        Raises RefusedRequest.
        """
        if max(map(len, prompts)) > MOST_PROMPT:
            raise RefusedRequest(f"the prompt is over {MOST_PROMPT:,} characters")
        return pl.DataFrame(
            {TEXT: [self._end(prompt) for prompt in prompts]}, schema={TEXT: pl.String}
        ).with_columns(pl.lit(sampling.model_dump_json()).alias(SAMPLING))

    def _end(self, prompt: str) -> str:
        # A network that starts afresh at every passage makes nothing of what was before one.
        kept = prompt[-self.length :]
        while (excess := len(self.vocabulary.encode(kept)) - self.length) > 0:
            # A character is at most four bytes, so not one too many goes.
            kept = kept[max(1, excess // 4) :]
        return kept

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        """The passage, as a prompt."""
        text: str = row.get_column(TEXT)[0]
        return text.encode(), "text/plain"

    def describe(self, tensors: Tensors) -> pl.DataFrame:
        """Length, and the share of unknown tokens."""
        return described(tensors["tokens"])


class Passages(Data):
    """Objects of running text, UTF-8, cut into passages of so many characters.

    The column `block` numbers stretches of neighbouring passages; `splits.ByGroup` holds whole
    blocks out, so that a passage is not surrounded by what was learnt. A passage that was seen
    before is quarantined.
    """

    vocabulary: SerializeAsAny[Vocabulary] = Characters()
    length: int = Field(256, ge=8, le=65_536)
    """Characters of a passage; so many of its tokens are seen."""
    block: int = Field(16, ge=1, le=65_536)
    """Passages of a block."""
    identity: tuple[str, ...] = (TEXT,)
    suffixes: tuple[str, ...] = (".txt",)

    @property
    def kept(self) -> tuple[str, ...]:
        return ()

    def parse(self, name: str, payload: bytes, references: Mapping[str, pl.DataFrame]) -> Parsed:
        del references
        try:
            text = plain(payload)
        except ValueError as error:
            raise RefusedObject(str(error)) from None
        if not text:
            raise RefusedObject("the object is empty")
        passages = [text[at : at + self.length] for at in range(0, len(text), self.length)]
        blocks = [f"{name}/{number // self.block}" for number in range(len(passages))]
        rows = pl.DataFrame({TEXT: passages, BLOCK: blocks}).with_row_index("row")
        return Parsed(rows, pl.DataFrame(schema=REFUSED))

    def checks(self) -> Sequence[Check]:
        return [Check(TEXT, "white space only", pl.col(TEXT).str.contains(r"\S"))]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.summarise(rows.get_column(TEXT))}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> PassageFeatures:
        vocabulary = self.vocabulary.fit([s["vocabulary"] for s in summaries])
        return PassageFeatures(vocabulary=vocabulary, length=self.length)
