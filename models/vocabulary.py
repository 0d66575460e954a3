"""Vocabularies: text to whole numbers and back, as text that travels with a version.

0 fills a row up, 1 stands for what the training rows have not shown, 2 begins a text.
"""

import heapq
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.open import Open

PADDING, UNKNOWN, BEGINNING = 0, 1, 2
SPECIAL = 3
# A word or marks with the white space before it, or white space: joined they are the text again.
WORDS = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")


class Vocabulary(Open):
    """The tokens of a text; unfitted until the training rows are seen."""

    @abstractmethod
    def summarise(self, texts: Iterable[str]) -> dict[str, int]:
        """Counts of some texts as a JSON value, to be combined by `fit`."""

    @abstractmethod
    def fit(self, summaries: Sequence[Mapping[str, int]]) -> "Vocabulary":
        """This vocabulary, fitted to the summaries of the training rows; raises ValueError."""

    @property
    @abstractmethod
    def pieces(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes of every token from `SPECIAL` on."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none of them `PADDING` or `BEGINNING`."""

    @property
    def size(self) -> int:
        """Number of tokens, the special ones included."""
        return SPECIAL + len(self.pieces)

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """How many characters each token begins, int64 [size]; 1 for an unknown one."""
        # Every byte but those 10xxxxxx begins a character in UTF-8.
        begun = [sum((byte & 0xC0) != 0x80 for byte in piece) for piece in self.pieces]
        return np.array([0, 1, 0, *begun], np.int64)

    def rows(self, texts: Sequence[str], length: int, *, beginning: bool) -> NDArray[np.int64]:
        """Tokens of the texts, int64 [n, length]: cut off, or filled up at the end."""
        first = [BEGINNING] if beginning else []
        found = np.full((len(texts), length), PADDING, np.int64)
        for row, text in zip(found, texts, strict=True):
            tokens = [*first, *self.encode(text)][:length]
            row[: len(tokens)] = tokens
        return found


def described(tokens: NDArray[np.int64]) -> pl.DataFrame:
    """What drift is looked for in, of tokens [n, length]: how many, and the unknown share."""
    present = np.count_nonzero(tokens != PADDING, axis=1)
    unknown = np.count_nonzero(tokens == UNKNOWN, axis=1) / np.maximum(present, 1)
    return pl.DataFrame({"tokens": present.astype(np.float64), "unknown": unknown})


class Characters(Vocabulary):
    """A token for every character of the training rows."""

    minimum: int = Field(1, ge=1)
    """Times a character must be seen to have a token of its own."""
    known: tuple[str, ...] = ()
    """The characters (fitted), sorted."""

    def summarise(self, texts: Iterable[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        return dict(sorted(counts.items()))

    def fit(self, summaries: Sequence[Mapping[str, int]]) -> "Characters":
        counts = _total(summaries)
        known = sorted(c for c, count in counts.items() if count >= self.minimum)
        if not known:
            raise ValueError(
                f"no character is in the training rows {self.minimum} times: land more text"
            )
        return Characters(minimum=self.minimum, known=tuple(known))

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return tuple(character.encode() for character in self.known)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {character: SPECIAL + i for i, character in enumerate(self.known)}

    def encode(self, text: str) -> list[int]:
        return [self._tokens.get(character, UNKNOWN) for character in text]


class BytePairs(Vocabulary):
    """Byte-pair encoding (Gage 1994; Sennrich, Haddow, Birch 2016) of words and of marks.

    The 256 bytes are tokens, so no text is unknown. Of equally frequent pairs the one of lower
    tokens is merged first: what a library may leave to the order of a hash table.
    """

    merges: int = Field(768, ge=1, le=65_536)
    """Largest number of merged pairs."""
    known: tuple[tuple[int, int], ...] = ()
    """The merged pairs (fitted) in their order, as numbers of pieces: first the 256 bytes."""

    def summarise(self, texts: Iterable[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(WORDS.findall(text))
        return dict(sorted(counts.items()))

    def fit(self, summaries: Sequence[Mapping[str, int]]) -> "BytePairs":
        counts = _total(summaries)
        if not counts:
            raise ValueError("the training rows have no text to take byte pairs from")
        return BytePairs(merges=self.merges, known=tuple(_merged(counts, self.merges)))

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        found = [bytes([value]) for value in range(256)]
        for left, right in self.known:
            found.append(found[left] + found[right])
        return tuple(found)

    @cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        return {pair: rank for rank, pair in enumerate(self.known)}

    @cached_property
    def _words(self) -> dict[str, list[int]]:
        return {}

    def encode(self, text: str) -> list[int]:
        return [token for word in WORDS.findall(text) for token in self._word(word)]

    def _word(self, word: str) -> list[int]:
        """Tokens of a word: of its pairs, the one merged first in training is merged first."""
        found = self._words.get(word)
        if found is None:
            parts = list(word.encode())
            while len(parts) > 1:
                pairs = list(pairwise(parts))
                best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
                if best not in self._ranks:
                    break
                parts = _replaced(parts, best, 256 + self._ranks[best])
            found = [SPECIAL + part for part in parts]
            # Most words of a text come again; a stranger's endless new ones are not kept.
            if len(self._words) < 65_536 and len(word) < 64:
                self._words[word] = found
        return found


def _total(summaries: Sequence[Mapping[str, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary)
    return counts


def _merged(counts: Mapping[str, int], merges: int) -> Iterable[tuple[int, int]]:
    """Pairs in the order they are merged: always the most frequent, at least twice."""
    words = [(list(word.encode()), count) for word, count in sorted(counts.items())]
    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = {}
    for index, (parts, count) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += count
            where.setdefault(pair, set()).add(index)
    # An entry is only good while its count is still the pair's.
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    made = 256
    while queue and made < 256 + merges:
        count, best = heapq.heappop(queue)
        if -count != pairs[best] or -count < 2:
            continue
        changed: set[tuple[int, int]] = set()
        for index in where.pop(best):
            parts, times = words[index]
            for pair in pairwise(parts):
                pairs[pair] -= times
                changed.add(pair)
            parts[:] = _replaced(parts, best, made)
            for pair in pairwise(parts):
                pairs[pair] += times
                where.setdefault(pair, set()).add(index)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(queue, (-pairs[pair], pair))
        made += 1
        yield best


def _replaced(parts: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """The parts with every occurrence of the pair, from the left, made one."""
    found: list[int] = []
    at = 0
    while at < len(parts):
        if at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair:
            found.append(new)
            at += 2
        else:
            found.append(parts[at])
            at += 1
    return found


def texts_of(vocabulary: Vocabulary, tokens: Iterable[int]) -> bytes:
    """The UTF-8 bytes the tokens stand for; an unknown one is the replacement character."""
    pieces: list[Any] = [b"", "\ufffd".encode(), b"", *vocabulary.pieces]
    return b"".join(pieces[token] for token in tokens)
