"""Convolutional networks over images: convolution, pooling, dense (LeCun et al. 1998)."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from models.data import Features
from models.spec import Family

if TYPE_CHECKING:
    from torch import nn


class Size(NamedTuple):
    """Channels of the convolutions, each followed by 2x2 pooling, and the dense width."""

    channels: tuple[int, ...]
    dense: int


SIZES: dict[str, Size] = {
    "tiny": Size((4, 8), 16),
    "small": Size((16, 32), 32),
    "base": Size((32, 64), 64),
}


class Spec(Family):
    """A stack of 3x3 convolutions and a dense layer."""

    size: Literal["tiny", "small", "base"] = "base"
    """Convolutions and dense width: tiny 4-8, 16; small 16-32, 32; base 32-64, 64."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Share of dense values dropped in training."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: image uint8 [n, C, H, W] -> float32 [n, width]."""
        from torch import nn

        from models.layers import Chain, image_input

        first = image_input(features)
        size = SIZES[self.size]
        layers: list[nn.Module] = [first]
        channels, height, across = first.channels, first.height, first.width
        for following in size.channels:
            layers += [nn.Conv2d(channels, following, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, across = following, height // 2, across // 2
        layers += [
            nn.Flatten(),
            nn.Linear(channels * height * across, size.dense),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(size.dense, width),
        ]
        return Chain(*layers)
