"""Torch building blocks every family shares: input scaling, losses, and what is served."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data import Features
from models.images import ImageFeatures
from models.language import NextToken
from models.objectives import Classification, Objective, Regression
from models.tables import TableFeatures
from models.transcription import Transcription
from models.vocabulary import PADDING

Loss = Callable[[Tensor, Tensor], Tensor]


class TableInput(nn.Module):
    """Numbers float32 [n, k] (NaN where null) and categories int64 [n, c] -> float32 [n, width]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: TableFeatures) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([f.mean for f in features.numbers]))
        self.register_buffer("deviation", torch.tensor([f.deviation for f in features.numbers]))
        sizes = [len(c.vocabulary) + 1 for c in features.categories]
        widths = [min(32, (size + 1) // 2 + 1) for size in sizes]
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True)
        )
        self.width = 2 * len(features.numbers) + sum(widths)

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = []
        remaining = list(inputs)
        if len(self.mean):
            numbers = remaining.pop(0)
            missing = torch.isnan(numbers)
            scaled = (torch.where(missing, self.mean, numbers) - self.mean) / self.deviation
            parts += [scaled.clamp(-8.0, 8.0), missing.to(scaled.dtype)]
        if len(self.embeddings):
            indices = remaining.pop(0)
            parts += [embed(indices[:, i]) for i, embed in enumerate(self.embeddings)]
        return torch.cat(parts, dim=1)


class ImageInput(nn.Module):
    """Pixels uint8 or float [n, C, H, W] in 0 to 255 -> float32, zero mean and unit deviation."""

    def __init__(self, features: ImageFeatures) -> None:
        super().__init__()
        self.mean, self.deviation = features.mean, features.deviation
        self.channels, self.height, self.width = features.size.shape

    def forward(self, image: Tensor) -> Tensor:
        return (image.to(torch.float32) - self.mean) / self.deviation


class Chain(nn.Sequential):
    """Layers in order; the first one may take several tensors."""

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *rest = self
        x: Tensor = first(*inputs)
        for layer in rest:
            x = layer(x)
        return x


class Residual(nn.Module):
    """Basic block of He et al. 2016: two 3x3 convolutions beside the input itself.

    float32 [n, C, H, W] -> [n, D, ceil(H / stride), ceil(W / stride)]; where the shape changes, a
    1x1 convolution brings the input to it.
    """

    def __init__(self, channels: int, following: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, following, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(following),
            nn.ReLU(),
            nn.Conv2d(following, following, 3, padding=1, bias=False),
            nn.BatchNorm2d(following),
        )
        self.input: nn.Module = nn.Identity()
        if stride != 1 or channels != following:
            self.input = nn.Sequential(
                nn.Conv2d(channels, following, 1, stride, bias=False), nn.BatchNorm2d(following)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.input(x))


def table_input(features: Features) -> TableInput:
    """The input layer for rows; raises TypeError for any other features."""
    if not isinstance(features, TableFeatures):
        raise TypeError(f"this family takes rows, the line has {type(features).__name__}")
    return TableInput(features)


def image_input(features: Features) -> ImageInput:
    """The input layer for images; raises TypeError for any other features."""
    if not isinstance(features, ImageFeatures):
        raise TypeError(f"this family takes images, the line has {type(features).__name__}")
    return ImageInput(features)


class Served(nn.Module):
    """The network as it is served: raw tensors in, the objective's output tensor out."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.head = head(objective)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.network(*inputs)
        if isinstance(found, tuple):
            # A state goes on as it is.
            return self.head(found[0]), found[1]
        return self.head(found)


class Rescale(nn.Module):
    """Standardised predictions float32 [n, 1] -> predictions in the target's unit [n]."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * self.deviation + self.mean


def head(objective: Objective) -> Callable[[Tensor], Tensor] | Any:
    """The last step of a served network; raises TypeError for an objective without one."""
    if isinstance(objective, Regression):
        return Rescale(objective.mean, objective.deviation)
    if isinstance(objective, Classification):
        return nn.Softmax(dim=1)
    if isinstance(objective, Transcription):
        return nn.Softmax(dim=2)
    if isinstance(objective, NextToken):
        return nn.LogSoftmax(dim=2)
    raise TypeError(f"no served output for {type(objective).__name__}")


def balanced(objective: Classification, counts: Mapping[str, int]) -> Tensor:
    """Weight of every class [k], inverse to its training rows, 1 on the average row."""
    rows = torch.tensor([float(counts[label]) for label in objective.labels])
    return rows.sum() / (len(rows) * rows)


def training_loss(
    objective: Objective,
    label_smoothing: float,
    class_weights: Tensor | None = None,
    kind: Literal["objective", "huber", "l1"] = "objective",
) -> Loss:
    """The mean loss of a batch; raises TypeError for an objective without one, or not of `kind`."""
    if isinstance(objective, Regression):
        mean, deviation = objective.mean, objective.deviation
        losses: dict[str, Loss] = {"huber": functional.huber_loss, "l1": functional.l1_loss}
        error: Loss = losses.get(kind, functional.mse_loss)

        def difference(x: Tensor, target: Tensor) -> Tensor:
            return error(x[:, 0], (target - mean) / deviation)

        return difference
    if kind != "objective":
        raise TypeError(f"training.loss: {kind} is no loss for {type(objective).__name__}")
    if isinstance(objective, Classification):

        def cross_entropy(x: Tensor, target: Tensor) -> Tensor:
            weights = None if class_weights is None else class_weights.to(x.device, x.dtype)
            return functional.cross_entropy(x, target, weights, label_smoothing=label_smoothing)

        return cross_entropy
    if isinstance(objective, Transcription):
        if label_smoothing:
            raise TypeError("training.label_smoothing: CTC has none, set it to 0")
        return ctc
    if isinstance(objective, NextToken):

        def following(x: Tensor, target: Tensor) -> Tensor:
            # What the network cut off at the end is padding in every row of the batch.
            wanted = target[:, : x.shape[1]].flatten()
            return functional.cross_entropy(
                x.flatten(0, 1), wanted, ignore_index=PADDING, label_smoothing=label_smoothing
            )

        return following
    raise TypeError(f"no loss for {type(objective).__name__}")


def ctc(x: Tensor, target: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006), a letter's mean of every row.

    Logits [n, T, symbols], of which 0 is blank, and target int64 [n, L] with zeros behind its end.
    """
    # On the CPU: its gradient repeats exactly, that of CUDA does not.
    logs, target = x.float().log_softmax(2).transpose(0, 1).cpu(), target.cpu()
    lengths = torch.full((len(target),), len(logs))
    # A clip that augmentation made too short for its text teaches nothing this time.
    return functional.ctc_loss(logs, target, lengths, (target > 0).sum(1), zero_infinity=True).to(
        x.device
    )
