"""Recurrent networks over tokens: a classifier that reads both ways, a language model that writes.

Long short-term memory (Hochreiter, Schmidhuber 1997; both ways: Schuster, Paliwal 1997), gated
recurrent units (Cho et al. 2014), kept from overfitting by dropout (Zaremba, Sutskever, Vinyals
2014).
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from models.data import Features
from models.spec import Family

if TYPE_CHECKING:
    from torch import nn


class Size(NamedTuple):
    """Widths of a token's embedding and of each layer's state, and the number of layers."""

    embedding: int
    state: int
    layers: int


CLASSIFIERS: dict[str, Size] = {
    "shallow": Size(32, 0, 0),
    "tiny": Size(16, 16, 1),
    "small": Size(32, 32, 1),
    "base": Size(64, 64, 1),
    "large": Size(128, 128, 2),
}
WRITERS: dict[str, Size] = {
    "tiny": Size(16, 32, 1),
    "small": Size(32, 256, 1),
    "base": Size(128, 384, 1),
    "large": Size(128, 512, 2),
}


class Classifier(Family):
    """Embedded tokens and those with what follows, LSTM layers both ways, the mean of it all.

    Beside it may stand a linear model of the same (wide and deep: Cheng et al. 2016).
    """

    size: Literal["shallow", "tiny", "small", "base", "large"] = "base"
    """Embedding, state of each direction, layers: tiny 16, 16, 1; small 32, 32, 1; base 64, 64, 1;
    large 128, 128, 2; shallow 32, 0, 0, which is the mean alone (Joulin et al. 2017)."""
    pairs: int = Field(32_768, ge=0, le=2**22)
    """Embeddings that pairs of neighbouring tokens share by hash (Joulin, Grave, Bojanowski,
    Mikolov 2017); 0 leaves pairs out."""
    triples: int = Field(0, ge=0, le=2**22)
    """Embeddings that three tokens in a row share by hash; 0 leaves them out."""
    direct: int = Field(0, ge=0, le=2**24)
    """Weights for each class that tokens, and by hash their pairs, have in the linear model, and so
    many that triples have, where there are any; 0 leaves it out."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of values dropped in training: before each layer, and before the classes."""
    token_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of tokens that training replaces by the unknown one."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: tokens int64 [n, length] -> float32 [n, width]."""
        from models.recurrent import BothWays

        embedding, state, layers = CLASSIFIERS[self.size]
        return BothWays(
            features, embedding, state, layers, width,
            pairs=self.pairs, triples=self.triples, direct=self.direct,
            dropout=self.dropout, token_dropout=self.token_dropout,
        )  # fmt: skip


class Writer(Family):
    """Embedded tokens, GRU layers, and what comes next after each token."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    """Embedding, state, layers: tiny 16, 32, 1; small 32, 256, 1; base 128, 384, 1; large 128, 512,
    2."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of values dropped in training: between layers, and before the output."""
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the values of embedded tokens dropped in training."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: tokens int64 [n, length] -> float32 [n, length, width].

        Given a state float32 [n, values] beside the tokens, it also gives the state after them.
        """
        from models.recurrent import OneWay

        embedding, state, layers = WRITERS[self.size]
        return OneWay(
            features, embedding, state, layers, width,
            dropout=self.dropout, embedding_dropout=self.embedding_dropout,
        )  # fmt: skip

    def carried(self) -> int:
        """Values of the state that goes from one step of writing to the next."""
        _, state, layers = WRITERS[self.size]
        return state * layers
