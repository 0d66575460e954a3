"""How weights start and follow their gradients: initialisation, optimizers, learning rates, L1."""

import math

import torch
import xxhash
from torch import Tensor, nn

from models.spec import Schedule, Training

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def random_seed(seed: int, epoch: int, use: str) -> int:
    """The seed of one use of randomness: a function of its arguments and of nothing before."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{use}".encode()) >> 1


def generator(seed: int, epoch: int, use: str) -> torch.Generator:
    """A CPU generator for one use of randomness."""
    return torch.Generator().manual_seed(random_seed(seed, epoch, use))


def initialise(network: nn.Module, training: Training) -> None:
    """Draw the weights of dense and convolution layers anew, biases zero, unless it is `default`.

    Xavier uniform (Glorot, Bengio 2010); He normal for ReLU (He et al. 2015).
    """
    if training.initialisation == "default":
        return
    random = generator(training.seed, 0, "initialisation")
    for layer in network.modules():
        if not isinstance(layer, LAYERS):
            continue
        weight = torch.empty(layer.weight.shape)
        if training.initialisation == "xavier":
            nn.init.xavier_uniform_(weight, generator=random)
        else:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=random)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()


def optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer for all parameters of the network."""
    settings = training.optimizer
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                network.parameters(),
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        case "adam":
            kind: type[torch.optim.Adam] = torch.optim.Adam
        case "adamw":
            kind = torch.optim.AdamW
    # Of Adam's implementations only the fused one gives the same bits on every CPU.
    return kind(
        network.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak."""
    warmup = schedule.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, steps - warmup)
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            return schedule.drop ** int(share * 3)
        case "cosine" | "onecycle":
            return (1 + math.cos(math.pi * share)) / 2


def add_l1(parameters: list[Tensor], strength: float) -> None:
    """Add the gradient of `strength` times the sum of absolute weights; biases are left alone."""
    for parameter in parameters:
        if parameter.ndim > 1 and parameter.grad is not None:
            parameter.grad.add_(parameter.detach().sign(), alpha=strength)
