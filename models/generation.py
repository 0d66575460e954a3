"""Writing with a language model: one token after the other, drawn with a seed. NumPy only."""

import codecs
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.data import Tensors
from models.objectives import NotFiniteError, Run
from models.open import Frozen
from models.vocabulary import PADDING, SPECIAL, Vocabulary

SAMPLING = "sampling"


class Sampling(Frozen):
    """How the next token is drawn, and how much is written."""

    characters: int = Field(200, ge=1, le=4000)
    """Characters to write."""
    temperature: float = Field(0.7, ge=0, le=10)
    """Divides the log-probabilities: under 1 the likely becomes likelier; 0 takes the likeliest."""
    top_k: int = Field(0, ge=0, le=100_000)
    """Draw among so many likeliest tokens (Fan, Lewis, Dauphin 2018); 0 takes all."""
    seed: int = Field(0, ge=0, lt=2**24)
    """The same seed, prompt and version write the same text."""

    @property
    def values(self) -> list[float]:
        """The fields as numbers, exact in float32; of the temperature six digits are."""
        return [float(self.characters), self.temperature, float(self.top_k), float(self.seed)]

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]]) -> "Sampling":
        """The sampling of `values`."""
        characters, temperature, top_k, seed = (float(v) for v in values)
        return cls(
            characters=int(characters),
            temperature=round(temperature, 6),
            top_k=int(top_k),
            seed=int(seed),
        )


def draw(
    log_probabilities: NDArray[np.floating[Any]], sampling: Sampling, random: np.random.Generator
) -> int:
    """A token, from the log-probabilities [tokens] of what comes next; never a special one.

    One number is taken from `random` for each token, whatever the settings.
    """
    found = log_probabilities.astype(np.float64)
    found[:SPECIAL] = -np.inf
    share = random.random()
    if sampling.temperature == 0:
        return int(found.argmax())
    # Of equally likely tokens the lower one comes first.
    order = np.argsort(-found, kind="stable")[: sampling.top_k or len(found) - SPECIAL]
    scaled = (found[order] - found[order[0]]) / sampling.temperature
    total = np.cumsum(np.exp(scaled))
    return int(order[np.searchsorted(total, share * total[-1], side="right")])


def write(
    run: Run, inputs: Tensors, output: str, vocabulary: Vocabulary,
    sampling: Sampling,
) -> Iterator[str]:  # fmt: skip
    """What follows a prompt, a few characters at a time.

    `inputs` are one prompt's tokens [1, length] and state [1, values]; `run` answers with the
    log-probabilities under the name `output`, and with `next_state`. Raises NotFiniteError.
    """
    random = np.random.default_rng(sampling.seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = inputs["tokens"]
    tokens = tokens[:, : np.count_nonzero(tokens[0] != PADDING)]
    state, pieces, left = inputs["state"], vocabulary.pieces, sampling.characters
    while left:
        found = run({"tokens": tokens, "state": state})
        following = found[output][0, -1]
        if not np.isfinite(following).all():
            raise NotFiniteError("the model has no finite probabilities for what comes next")
        token = draw(following, sampling, random)
        tokens, state = np.array([[token]], np.int64), found["next_state"]
        piece = decoder.decode(pieces[token - SPECIAL])[:left]
        left -= len(piece)
        if piece:
            yield piece
