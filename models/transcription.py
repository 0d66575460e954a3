"""An objective whose target is a text: what is said in a clip, letter by letter."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.data import Check
from models.decoding import BLANK, Decoded, decode, log_likelihood, one_hot
from models.objectives import Better, Floats, Objective, Primary
from models.spelling import EDGE, Spelling, count
from models.tensors import TensorSpec

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"


class Transcription(Objective):
    """One text per row, recognised frame by frame and trained with CTC (Graves et al. 2006)."""

    alphabet: str = Field(LETTERS, min_length=2, max_length=4096, pattern=r"\A[^\n]*\z")
    """The letters there are, in the order of the model's output, which begins with the blank."""
    beam: int = Field(8, ge=1, le=128)
    """Texts that decoding follows; 1 takes the likeliest letter of every frame."""
    order: int = Field(5, ge=1, le=8)
    """Letters that the language model of the training transcripts knows in their order."""
    language: float = Field(0.5, ge=0, le=4)
    """What that model's logarithms count for in the search beside the network's; 0 is nothing."""
    bonus: float = Field(1.0, ge=0, le=10)
    """What a letter counts for in the search: a language model prefers short texts."""
    counts: dict[str, int] = {}
    """How often sequences of letters occur in the training transcripts (fitted)."""
    primary: Primary = Primary(name="cer", better="lower")
    directions: ClassVar[Mapping[str, Better]] = {"cer": "lower", "wer": "lower"}

    def checks(self) -> Sequence[Check]:
        target = pl.col(self.target)
        foreign = target.str.replace_all(f"[{_escaped(self.alphabet)}]", "").str.len_chars() > 0
        return [
            Check(self.target, "missing", target.is_not_null() & (target.str.len_chars() > 0)),
            Check(self.target, "has a letter the line's alphabet lacks", ~foreign),
        ]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        return dict(count(rows.get_column(self.target), self.order))

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Self:
        counts: Counter[str] = Counter()
        for summary in summaries:
            counts.update(summary)
        absent = sorted(set(self.alphabet) - counts.keys())
        if absent:
            named = ", ".join(map(repr, absent))
            raise ValueError(f"no training transcript has {named}: land some, or take it out")
        return self.model_copy(update={"counts": dict(sorted(counts.items()))})

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.counts, self.order, len(self.alphabet))

    def _prior(self, symbols: tuple[int, ...], symbol: int) -> float:
        """What a text gains by one more letter, or by its end."""
        before = "".join(self.alphabet[s - 1] for s in symbols[-self.order :])
        if symbol == BLANK:
            return self.language * self._spelling.log_probability(before, EDGE)
        letter = self.alphabet[symbol - 1]
        return self.language * self._spelling.log_probability(before, letter) + self.bonus

    def _decoded(self, frames: Floats) -> Decoded:
        return decode(frames, self.beam, self._prior if self.language and self.counts else None)

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(name="probabilities", datatype="FP32", shape=(-1, -1, self.width))

    @property
    def width(self) -> int:
        return 1 + len(self.alphabet)

    def encode(self, rows: pl.DataFrame) -> NDArray[Any]:
        """The target of every row: int64 [n, L], symbols from 1 on, zeros behind them."""
        place = {letter: number for number, letter in enumerate(self.alphabet, 1)}
        texts = rows.get_column(self.target).to_list()
        target = np.full((len(texts), max(map(len, texts), default=0)), BLANK, np.int64)
        for row, text in zip(target, texts, strict=True):
            row[: len(text)] = [place[letter] for letter in text]
        return target

    def losses(self, predicted: Floats, target: NDArray[Any]) -> dict[str, Floats]:
        from rapidfuzz.distance import Levenshtein

        found: dict[str, list[int]] = {"edits": [], "letters": [], "word_edits": [], "words": []}
        for frames, symbols in zip(predicted, target, strict=True):
            heard, said = self._text(self._decoded(frames).symbols), self._text(symbols)
            found["edits"].append(Levenshtein.distance(heard, said))
            found["letters"].append(len(said))
            found["word_edits"].append(Levenshtein.distance(heard.split(), said.split()))
            found["words"].append(len(said.split()))
        return {name: np.array(values, np.float64) for name, values in found.items()}

    def metrics(self, losses: Mapping[str, Floats]) -> dict[str, Any]:
        """Character and word error rate: edits (Levenshtein 1966) over what was said."""
        return {
            "cer": np.sum(losses["edits"], axis=-1) / np.sum(losses["letters"], axis=-1),
            "wer": np.sum(losses["word_edits"], axis=-1) / np.sum(losses["words"], axis=-1),
        }

    def closeness(self, found: Floats, expected: Floats) -> float:
        """Mean share of probability that lies elsewhere, over frames.

        The largest would say nothing: a compressed network may hear a letter one frame later.
        """
        return float(np.mean(np.sum(np.abs(found - expected), axis=-1)) / 2)

    def constant(self, target: NDArray[Any], count: int) -> tuple[str, Floats]:
        texts = Counter(tuple(int(s) for s in row if s != BLANK) for row in target)
        frequent = min(texts, key=lambda text: (-texts[text], text))
        return "most frequent", np.tile(one_hot(frequent, self.width), (count, 1, 1))

    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        """The text, and the decoder's confidence: the mean probability of a letter of it."""
        return [self._said(self._decoded(frames)) for frames in output]

    def log_likelihood(self, output: NDArray[Any]) -> tuple[str, NDArray[np.float64]]:
        """The text of the last row, and what every row [n, T, letters] gives it, a letter."""
        symbols = self._decoded(output[-1]).symbols
        return self._text(symbols), log_likelihood(output, symbols) / max(1, len(symbols))

    def _said(self, found: Decoded) -> dict[str, Any]:
        letter = found.log_probability / max(1, len(found.symbols))
        return {
            self.target: self._text(found.symbols),
            "confidence": round(float(np.exp(letter)), 6),
        }

    def _text(self, symbols: Sequence[int] | NDArray[Any]) -> str:
        return "".join(self.alphabet[int(s) - 1] for s in symbols if s != BLANK).strip()


def _escaped(letters: str) -> str:
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in letters)
