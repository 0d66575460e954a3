"""Convolutional networks over images: plain stacks, LeNet, VGG and ResNet, as one size table.

Plain and LeNet after LeCun et al. 1998, VGG after Simonyan, Zisserman 2015, ResNet after He et al.
2016; the last two with batch normalisation (Ioffe, Szegedy 2015).
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from models.data import Features
from models.spec import Family

if TYPE_CHECKING:
    from torch import nn

# Sides of LeNet's input: from there on its convolutions take no padding.
CLASSIC = 32


class Size(NamedTuple):
    """Channels of the stages, which each halve the image, and the widths of the dense layers."""

    kind: Literal["plain", "lenet", "vgg", "resnet"]
    channels: tuple[int, ...]
    dense: tuple[int, ...]


SIZES: dict[str, Size] = {
    "tiny": Size("plain", (4, 8), (16,)),
    "small": Size("plain", (16, 32), (32,)),
    "base": Size("plain", (32, 64), (64,)),
    "lenet": Size("lenet", (6, 16), (120, 84)),
    "vgg": Size("vgg", (24, 48, 96), (128,)),
    "resnet": Size("resnet", (16, 32, 64), ()),
}


class Spec(Family):
    """Stages of convolutions, then dense layers."""

    size: Literal["tiny", "small", "base", "lenet", "vgg", "resnet"] = "base"
    """Channels and dense widths: tiny 4-8, 16; small 16-32, 32; base 32-64, 64; lenet 5x5
    convolutions 6-16, 120-84, padded where an image is below LeCun's 32x32; vgg pairs of 3x3
    24-48-96, 128; resnet 16-32-64, a mean."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Share of dense values dropped in training."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: image uint8 [n, C, H, W] -> float32 [n, width]."""
        from torch import nn

        from models.layers import Chain, Residual, image_input

        first = image_input(features)
        kind, stages, dense = SIZES[self.size]
        layers: list[nn.Module] = [first]
        channels, height, across = first.channels, first.height, first.width
        pads = min(height, across) < CLASSIC
        for index, following in enumerate(stages):
            if kind == "resnet":
                stride = 1 if index == 0 else 2
                layers += [Residual(channels, following, stride), Residual(following, following, 1)]
                height, across = -(-height // stride), -(-across // stride)
            else:
                layers += _convolutions(kind, channels, following, pads)
                layers.append(nn.MaxPool2d(2))
                lost = 4 if kind == "lenet" and not pads else 0
                height, across = (height - lost) // 2, (across - lost) // 2
            channels = following
        if kind == "resnet":
            # The mean over all places, whatever their number.
            layers.append(nn.AvgPool2d((height, across)))
            height = across = 1
        layers.append(nn.Flatten())
        last = channels * height * across
        if not last:
            raise ValueError(
                f"size {self.size} halves an image {len(stages)} times:"
                f" {first.width} x {first.height} is too small for it"
            )
        for hidden in dense:
            layers += [nn.Linear(last, hidden), nn.ReLU()]
            last = hidden
        layers += [nn.Dropout(self.dropout), nn.Linear(last, width)]
        return Chain(*layers)


def _convolutions(kind: str, channels: int, following: int, pads: bool) -> "list[nn.Module]":
    """The convolutions of one stage before its pooling; height and width stay, but of LeNet's."""
    from torch import nn

    if kind == "lenet":
        return [nn.Conv2d(channels, following, 5, padding=2 if pads else 0), nn.ReLU()]
    if kind == "plain":
        return [nn.Conv2d(channels, following, 3, padding=1), nn.ReLU()]
    layers: list[nn.Module] = []
    for before in (channels, following):
        layers.append(nn.Conv2d(before, following, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(following), nn.ReLU()]
    return layers
