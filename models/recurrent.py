"""Torch networks of the recurrent family."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data import Features
from models.passages import PassageFeatures
from models.texts import TextFeatures
from models.vocabulary import PADDING, SPECIAL, UNKNOWN

# An odd number near 2**32 divided by the golden ratio spreads neighbours (Knuth 1973, 6.4).
SPREAD = 2_654_435_761
# The largest prime below 2**20.
PRIME = 1_048_573


class BothWays(nn.Module):
    """A classifier that reads each text from both ends: tokens int64 [n, length] -> [n, width].

    What follows the end of a text changes nothing: the backward direction starts at its last token,
    and the mean is of its tokens alone. That is what packed sequences give, in steps that ONNX has.
    """

    def __init__(
        self,
        features: Features,
        embedding: int,
        state: int,
        layers: int,
        width: int,
        *,
        pairs: int,
        triples: int,
        direct: int,
        dropout: float,
        token_dropout: float,
    ) -> None:
        super().__init__()
        if not isinstance(features, TextFeatures):
            raise TypeError(f"this family takes texts, the line has {type(features).__name__}")
        self.token_dropout = token_dropout
        self.pairs, self.triples, self.direct = pairs, triples, direct
        self.embedding = nn.Embedding(features.vocabulary.size, embedding, padding_idx=PADDING)
        self.of_pairs = nn.Embedding(pairs, embedding) if pairs else None
        self.of_triples = nn.Embedding(triples, embedding) if triples else None
        sizes = [features.vocabulary.size, direct, *([direct] if triples else [])]
        self.weights = nn.ModuleList(nn.Embedding(s, width) for s in sizes if direct)
        for weight in self.weights.parameters():
            nn.init.zeros_(weight)
        widths = [embedding, *[2 * state] * (layers - 1)][:layers]
        self.forwards = nn.ModuleList(nn.LSTM(size, state, batch_first=True) for size in widths)
        self.backwards = nn.ModuleList(nn.LSTM(size, state, batch_first=True) for size in widths)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(embedding + 2 * state, width)

    def forward(self, tokens: Tensor) -> Tensor:
        # A text of nothing but padding counts as one token: a mean of none is no number.
        lengths = (tokens != PADDING).sum(dim=1, keepdim=True).clamp(min=1)
        if self.training:
            tokens = tokens[:, : int(lengths.max())]
            dropped = torch.rand(tokens.shape, device=tokens.device) < self.token_dropout
            tokens = torch.where(dropped & (tokens >= SPECIAL), UNKNOWN, tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        turned = (lengths - 1 - steps).clamp(min=0)
        embedded = x = self.embed(tokens)
        for forwards, backwards in zip(self.forwards, self.backwards, strict=True):
            x = self.dropout(x)
            ahead, _ = forwards(x)
            behind, _ = backwards(_at(x, turned))
            x = torch.cat([ahead, _at(behind, turned)], dim=2)
        x = torch.cat([embedded, x], dim=2) if self.forwards else embedded
        present = (steps < lengths).unsqueeze(2)
        mean = torch.where(present, x, 0.0).sum(dim=1) / lengths.to(x.dtype)
        found: Tensor = self.output(self.dropout(mean))
        if self.direct:
            alone, paired, *tripled = self.weights
            counted = alone(tokens) + paired(_pairs(tokens) % self.direct)
            for weight in tripled:
                counted = counted + weight(_triples(tokens) % self.direct)
            # Of long texts the sum is larger, and so is its deviation, by the root of the length.
            total = torch.where(present, counted, 0.0).sum(dim=1)
            found = found + total / lengths.to(x.dtype).sqrt()
        return found

    def embed(self, tokens: Tensor) -> Tensor:
        """Every token, and it with the following ones: float32 [n, length, embedding]."""
        found: Tensor = self.embedding(tokens)
        if self.of_pairs is not None:
            found = found + self.of_pairs(_pairs(tokens) % self.pairs)
        if self.of_triples is not None:
            found = found + self.of_triples(_triples(tokens) % self.triples)
        return found


def _pairs(tokens: Tensor) -> Tensor:
    """A number for every token with the one that follows it, int64 [n, length]."""
    following = functional.pad(tokens[:, 1:], (0, 1), value=PADDING)
    return tokens * SPREAD + following


def _triples(tokens: Tensor) -> Tensor:
    """A number for every token with the two that follow it, int64 [n, length]."""
    # A pair's number is cut first: by another factor it would be over 64 bits.
    after = functional.pad(tokens, (0, 2), value=PADDING)[:, 2:]
    return _pairs(tokens) % PRIME * SPREAD + after


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x [n, length, k] in the order of the places int64 [n, length]."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


class OneWay(nn.Module):
    """A language model: tokens int64 [n, length] -> what follows each, [n, length, width]."""

    def __init__(
        self,
        features: Features,
        embedding: int,
        state: int,
        layers: int,
        width: int,
        *,
        dropout: float,
        embedding_dropout: float,
    ) -> None:
        super().__init__()
        if not isinstance(features, PassageFeatures):
            raise TypeError(f"this family takes passages, the line has {type(features).__name__}")
        self.layers, self.size = layers, state
        embedded = nn.Embedding(features.vocabulary.size, embedding)
        # Without any, random numbers are drawn for the output alone.
        self.embedding = (
            nn.Sequential(embedded, nn.Dropout(embedding_dropout))
            if embedding_dropout
            else embedded
        )
        self.recurrent = nn.GRU(
            embedding, state, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(state, width)

    def forward(
        self, tokens: Tensor, state: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if state is None:
            if self.training:
                # Passages of byte pairs fill few rows to their end.
                tokens = tokens[:, : max(1, int((tokens != PADDING).sum(dim=1).max()))]
            x, _ = self.recurrent(self.embedding(tokens))
            return self._following(x)
        before = state.reshape(-1, self.layers, self.size).transpose(0, 1).contiguous()
        x, after = self.recurrent(self.embedding(tokens), before)
        return self._following(x), after.transpose(0, 1).reshape(-1, self.layers * self.size)

    def _following(self, x: Tensor) -> Tensor:
        found: Tensor = self.output(self.dropout(x))
        return found
