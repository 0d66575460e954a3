"""Torch building blocks of the transformer family: over time, where rows differ in length.

T is positions, D width. What lies behind a row's end never reaches what is before it: convolutions
see zeros there and attention sees nothing, so padding changes no answer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.audio import AudioFeatures
from models.data import Features

IMPOSSIBLE = -1e4
"""Logit of what cannot be, of a size that every number format holds."""


class SpectrogramInput(nn.Module):
    """Log-mel energies float32 [n, T, bands] -> zero mean and unit deviation, zeros as padding."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: AudioFeatures) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(features.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(features.deviation), persistent=False)

    def forward(self, spectrogram: Tensor, inside: Tensor) -> Tensor:
        scaled = (spectrogram - self.mean) / self.deviation
        return scaled * inside[:, :, None]


class Halve(nn.Module):
    """A convolution of stride two: float32 [n, T, C] -> [n, ceil(T / 2), D], then GELU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, width, 5, stride=2, padding=2)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        found = functional.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        return found * inside[:, :, None]


class Positions(nn.Module):
    """Adds sines and cosines of the position (Vaswani et al. 2017): float32 [n, T, D], the same.

    Of no row longer than `longest`: a request must not cost what it likes.
    """

    rates: Tensor
    places: Tensor

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        self.register_buffer("rates", rates, persistent=False)
        self.register_buffer("places", torch.arange(longest).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = self.places[: x.shape[1], None] * self.rates
        return x + torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017): float32 [n, T, D], the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        count, length, width = x.shape
        split = self.projections(x).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=inside[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        mixed: Tensor = self.output(found.transpose(1, 2).reshape(count, length, width))
        return mixed


class Neighbours(nn.Module):
    """The convolution module of a Conformer (Gulati et al. 2020): float32 [n, T, D], the same.

    Layer normalisation stands where theirs has batch normalisation, which would let rows and
    padding count in each other.
    """

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.opening = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, 2 * reach + 1, padding=reach, groups=width)
        self.norm = nn.LayerNorm(width)
        self.closing = nn.Linear(width, width)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        gated = functional.glu(self.opening(x), dim=2) * inside[:, :, None]
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.closing(functional.silu(self.norm(mixed)))
        return found


class Block(nn.Module):
    """Attention, neighbours and a dense part, each added to what it is given and normed before."""

    def __init__(self, width: int, heads: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.neighbours = Neighbours(width, reach) if reach else None
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if reach else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), inside))
        if self.neighbours is not None:
            x = x + self.dropout(self.neighbours(self.norms[1](x), inside))
        added: Tensor = x + self.dropout(self.dense(self.norms[-1](x)))
        return added


class Recogniser(nn.Module):
    """Spectrogram float32 [n, T, bands] and frames int64 [n] -> logits float32 [n, T / 4, symbols].

    A position behind the row's end is surely blank, so that it costs CTC nothing.
    """

    blank: Tensor

    def __init__(
        self, features: AudioFeatures, symbols: int, *, width: int, layers: int, heads: int,
        reach: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = SpectrogramInput(features)
        self.halves = nn.ModuleList([Halve(features.mel.bands, width), Halve(width, width)])
        # Half as much again: training may slow a clip down.
        self.positions = Positions(width, features.most_frames * 3 // 8)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, reach, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, symbols)
        self.register_buffer("blank", torch.full((symbols,), IMPOSSIBLE), persistent=False)
        self.blank[0] = 0.0

    def forward(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        # No row without a frame: nothing to attend to is no number.
        frames = frames.clamp(min=1)
        x = self.first(spectrogram, _inside(spectrogram, frames))
        for halve in self.halves:
            frames = (frames + 1) // 2
            length = (x.shape[1] + 1) // 2
            x = halve(x, torch.arange(length, device=x.device) < frames[:, None])
        inside = _inside(x, frames)
        x = self.dropout(self.positions(x))
        for block in self.blocks:
            x = block(x, inside)
        return torch.where(inside[:, :, None], self.last(self.norm(x)), self.blank)


def _inside(x: Tensor, frames: Tensor) -> Tensor:
    """Bool [n, T]: whether a position is before the row's end."""
    return torch.arange(x.shape[1], device=x.device) < frames[:, None]


def audio_features(features: Features) -> AudioFeatures:
    """The features, once they are of sound; raises TypeError."""
    if not isinstance(features, AudioFeatures):
        raise TypeError(f"this family takes sound, the line has {type(features).__name__}")
    return features
