"""Writing with a language model: one token after the other, drawn with a seed. NumPy only."""

import codecs
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from models.data import Tensors
from models.objectives import NotFiniteError, Run
from models.open import Frozen
from models.vocabulary import PADDING, SPECIAL, Vocabulary

SAMPLING = "sampling"
MOST = 4000
"""Most characters or tokens of one text."""


class Sampling(Frozen):
    """How the next token is drawn, and how much is written."""

    characters: int = Field(200, ge=1, le=MOST)
    """Characters to write."""
    tokens: int | None = Field(None, ge=1, le=MOST)
    """Tokens to write, instead of `characters`."""
    temperature: float = Field(0.7, ge=0, le=10)
    """Divides the log-probabilities: under 1 the likely becomes likelier; 0 takes the likeliest."""
    top_k: int = Field(0, ge=0, le=100_000)
    """Draw among so many likeliest tokens (Fan, Lewis, Dauphin 2018); 0 takes all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest that have this share together (Holtzman et al. 2020)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The same seed, prompt and version write the same text."""
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...] = Field(
        (), max_length=4
    )
    """Texts before which writing ends."""
    stream: bool = False
    """Whether the text is sent while it is written."""

    @property
    def most(self) -> int:
        """Largest number of tokens this may take, if each gives a character."""
        return self.tokens or self.characters


class Step(NamedTuple):
    """One token more."""

    text: str
    """What is certain now: what may be the beginning of a stop, or half a character, waits."""
    token: int
    log_probability: float
    """Of the token, as the network gives it."""
    likeliest: tuple[tuple[int, float], ...]
    """Tokens with their log-probabilities, the likeliest first; as many as were asked for."""
    characters: int
    """How many the token completes, those that wait included."""
    end: Literal["length", "stop"] | None
    """Why this is the last one."""


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
    if sampling.top_p < 1:
        total = total[: 1 + np.searchsorted(total, sampling.top_p * total[-1])]
    return int(order[np.searchsorted(total, share * total[-1], side="right")])


def write(
    run: Run, inputs: Tensors, output: str, vocabulary: Vocabulary, sampling: Sampling, *,
    choice: int = 0, likeliest: int = 0,
) -> Iterator[Step]:  # fmt: skip
    """What follows a prompt, token by token.

    `inputs` are one prompt's tokens [1, length] and state [1, values]; `run` answers with the
    log-probabilities under the name `output`, and with `next_state`. Every `choice` is another text
    of the same seed. Raises NotFiniteError.
    """
    random = np.random.default_rng([sampling.seed, choice] if choice else sampling.seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ending = _Ending(sampling.stop)
    tokens = inputs["tokens"]
    tokens = tokens[:, : np.count_nonzero(tokens[0] != PADDING)]
    state, pieces, left = inputs["state"], vocabulary.pieces, sampling.most
    while left > 0:
        found = run({"tokens": tokens, "state": state})
        following = found[output][0, -1]
        if not np.isfinite(following).all():
            raise NotFiniteError("the model has no finite probabilities for what comes next")
        token = draw(following, sampling, random)
        tokens, state = np.array([[token]], np.int64), found["next_state"]
        counted = sampling.tokens is not None
        piece = decoder.decode(pieces[token - SPECIAL], final=counted and left == 1)
        piece = piece if counted else piece[:left]
        left -= 1 if counted else len(piece)
        text, stopped = ending.after(piece, last=left == 0)
        best = np.argsort(-following, kind="stable")[:likeliest] if likeliest else ()
        yield Step(
            text,
            token,
            float(following[token]),
            tuple((int(one), float(following[one])) for one in best),
            len(piece),
            "stop" if stopped else None if left else "length",
        )
        if stopped:
            return


class _Ending:
    """Holds back what may be the beginning of a stop."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held = stops, ""

    def after(self, piece: str, *, last: bool) -> tuple[str, bool]:
        """The text that is certain once the piece is there, and whether a stop was reached."""
        held = self._held + piece
        reached = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if reached:
            return held[: min(reached)], True
        if last:
            return held, False
        begun = [
            length
            for stop in self._stops
            for length in range(1, len(stop))
            if held.endswith(stop[:length])
        ]
        certain = len(held) - max(begun, default=0)
        self._held = held[certain:]
        return held[:certain], False
