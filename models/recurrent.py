"""Torch networks of the recurrent family."""

import torch
from torch import Tensor, nn

from models.data import Features
from models.passages import PassageFeatures
from models.texts import TextFeatures
from models.vocabulary import PADDING, SPECIAL, UNKNOWN


class BothWays(nn.Module):
    """A classifier that reads each text from both ends: tokens int64 [n, length] -> [n, width].

    What follows the end of a text changes nothing: the backward direction starts at its last token,
    and the mean and maximum are of its tokens alone. That is what packed sequences give, in steps
    that ONNX has.
    """

    def __init__(
        self,
        features: Features,
        embedding: int,
        state: int,
        layers: int,
        width: int,
        *,
        dropout: float,
        token_dropout: float,
    ) -> None:
        super().__init__()
        if not isinstance(features, TextFeatures):
            raise TypeError(f"this family takes texts, the line has {type(features).__name__}")
        self.token_dropout = token_dropout
        self.embedding = nn.Embedding(features.vocabulary.size, embedding, padding_idx=PADDING)
        sizes = [embedding, *[2 * state] * (layers - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(size, state, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, state, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(4 * state, width)

    def forward(self, tokens: Tensor) -> Tensor:
        present = tokens != PADDING
        # A text of nothing but padding counts as one unknown token: a mean of none is no number.
        lengths = present.sum(dim=1, keepdim=True).clamp(min=1)
        if self.training:
            longest = int(lengths.max())
            tokens, present = tokens[:, :longest], present[:, :longest]
            dropped = torch.rand(tokens.shape, device=tokens.device) < self.token_dropout
            tokens = torch.where(dropped & (tokens >= SPECIAL), UNKNOWN, tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        turned = (lengths - 1 - steps).clamp(min=0)
        x = self.embedding(tokens)
        for forwards, backwards in zip(self.forwards, self.backwards, strict=True):
            x = self.dropout(x)
            ahead, _ = forwards(x)
            behind, _ = backwards(_at(x, turned))
            x = torch.cat([ahead, _at(behind, turned)], dim=2)
        present = (steps < lengths).unsqueeze(2)
        mean = torch.where(present, x, 0.0).sum(dim=1) / lengths.to(x.dtype)
        most = torch.where(present, x, -1e4).amax(dim=1)
        # Not dropped before: what is left is scaled up, and a maximum takes the scaled.
        found: Tensor = self.output(self.dropout(torch.cat([mean, most], dim=1)))
        return found


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
    ) -> None:
        super().__init__()
        if not isinstance(features, PassageFeatures):
            raise TypeError(f"this family takes passages, the line has {type(features).__name__}")
        self.layers, self.size = layers, state
        self.embedding = nn.Embedding(features.vocabulary.size, embedding)
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
