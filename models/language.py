"""The objective of a language model: what comes next, in bits a character."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import SerializeAsAny

from models.data import Check, Features, Tensors
from models.generation import Sampling, Step, write
from models.objectives import Better, Floats, Objective, Primary, Run
from models.passages import PassageFeatures
from models.tensors import TensorSpec
from models.vocabulary import PADDING, UNKNOWN, Characters, Vocabulary

# What it would take to say which character an unknown one is.
UNKNOWN_NATS = math.log(0x110000)


class NextToken(Objective):
    """The token after each token of a passage.

    Text is coded with the network's probabilities, and what that takes is divided by the number of
    characters, so that vocabularies compare. An unknown character also costs its spelling.
    """

    steps: ClassVar[bool] = True
    target: str = "text"
    primary: Primary = Primary(name="bits_per_character", better="lower")
    directions: ClassVar[Mapping[str, Better]] = {"bits_per_character": "lower"}
    vocabulary: SerializeAsAny[Vocabulary] = Characters()
    """That of the features (fitted)."""
    length: int = 0
    """Tokens of a passage (fitted)."""

    def checks(self) -> Sequence[Check]:
        return [Check(self.target, "missing", pl.col(self.target).is_not_null())]

    def summarise(self, rows: pl.DataFrame) -> dict[str, Any]:
        del rows
        return {}

    def fit(self, summaries: Sequence[Mapping[str, Any]]) -> Self:
        del summaries
        return self

    def beside(self, features: Features) -> Self:
        if not isinstance(features, PassageFeatures):
            raise ValueError(f"a language model takes passages, not {type(features).__name__}")
        return self.model_copy(
            update={"vocabulary": features.vocabulary, "length": features.length}
        )

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(
            name="log_probabilities", datatype="FP32", shape=(-1, -1, self.vocabulary.size)
        )

    @property
    def width(self) -> int:
        return self.vocabulary.size

    @property
    def values(self) -> int:
        return (self.length + 1) * self.width

    def encode(self, rows: pl.DataFrame) -> NDArray[Any]:
        """The tokens that follow, int64 [n, length + 1], 0 where nothing is asked."""
        texts = rows.get_column(self.target).to_list()
        return self.vocabulary.rows(texts, self.length + 1, beginning=False)

    def losses(self, predicted: Floats, target: NDArray[Any]) -> dict[str, Floats]:
        chosen = np.take_along_axis(predicted, target[:, :, None], axis=2)[:, :, 0]
        nats = -chosen.astype(np.float64) * (target != PADDING)
        spelt = UNKNOWN_NATS * (target == UNKNOWN)
        return {
            "nats": (nats + spelt).sum(axis=1),
            "characters": self.vocabulary.characters[target].sum(axis=1).astype(np.float64),
        }

    def metrics(self, losses: Mapping[str, Floats]) -> dict[str, Any]:
        nats, characters = (np.sum(losses[n], axis=-1) for n in ("nats", "characters"))
        return {"bits_per_character": nats / characters / math.log(2)}

    def incomparable(self, other: Objective) -> str | None:
        """Any vocabulary compares, but not one that is cut off before a passage ends."""
        if not isinstance(other, NextToken):
            return super().incomparable(other)
        if other.length < self.length:
            return f"it reads {other.length:,} tokens of a passage, these have {self.length:,}"
        return None

    def unlike(self, ours: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> str | None:
        """A vocabulary that takes more tokens for a text may have cut it off sooner."""
        shorter = int(np.count_nonzero(ours["characters"] != theirs["characters"]))
        return f"{shorter:,} passages are cut off at other characters" if shorter else None

    def constant(self, target: NDArray[Any], count: int) -> tuple[str, Floats]:
        shares = frequencies(target, self.width)
        shape = (count, self.length + 1, self.width)
        return "unigram", np.broadcast_to(np.log(shares).astype(np.float32), shape)

    def answer(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        """The likeliest next tokens after each row's last one."""
        pieces = ["", "\ufffd", "", *(p.decode(errors="replace") for p in self.vocabulary.pieces)]
        return [
            {"next": {pieces[t]: round(float(np.exp(row[t])), 6) for t in np.argsort(-row)[:5]}}
            for row in output[:, -1]
        ]

    def write(
        self, run: Run, tensors: Tensors, sampling: Sampling, *, choice: int = 0, likeliest: int = 0
    ) -> Iterator[Step]:
        """What follows one encoded prompt; `generation.write` says what it raises."""
        return write(
            run,
            tensors,
            self.output.name,
            self.vocabulary,
            sampling,
            choice=choice,
            likeliest=likeliest,
        )

    def written(self, steps: Sequence[Step], sampling: Sampling) -> dict[str, Any]:
        """What a person reads: the text, why it ends, its tokens, and how it was drawn."""
        return {
            self.target: "".join(step.text for step in steps),
            "finish_reason": steps[-1].end,
            "completion_tokens": len(steps),
            **sampling.model_dump(exclude={"stream"}),
        }


def frequencies(tokens: NDArray[Any], width: int) -> NDArray[np.float64]:
    """Share of each token [width] among those that are no padding; none is 0 (Laplace)."""
    counts = np.bincount(tokens[tokens != PADDING], minlength=width) + 1.0
    found: NDArray[np.float64] = counts / counts.sum()
    return found
