"""Transformer encoders over sound: what is said, frame by frame.

Norm-first encoder layers (Vaswani et al. 2017; Xiong et al. 2020) behind two convolutions that each
halve the time; with `reach` also the convolution module of a Conformer (Gulati et al. 2020).
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from models.data import Features
from models.spec import Family

if TYPE_CHECKING:
    from torch import nn


class Size(NamedTuple):
    """Width of the layers, how many there are, and their heads."""

    width: int
    layers: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(16, 1, 2),
    "small": Size(96, 4, 4),
    "base": Size(144, 4, 4),
    "large": Size(192, 6, 4),
}


class Spec(Family):
    """Two convolutions, encoder layers, and a letter for every fourth frame."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    """Width, layers and heads: tiny 16, 1, 2; small 96, 4, 4; base 144, 4, 4; large 192, 6, 4."""
    reach: int = Field(7, ge=0, le=31)
    """Positions that a layer's convolution reaches to either side; 0 leaves the convolution out."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of values and of attention dropped in training."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: spectrogram float32 [n, T, bands], frames [n] -> [n, T / 4, width]."""
        from models.attention import Recogniser, audio_features

        inside, layers, heads = SIZES[self.size]
        return Recogniser(
            audio_features(features), width,
            width=inside, layers=layers, heads=heads, reach=self.reach, dropout=self.dropout,
        )  # fmt: skip
