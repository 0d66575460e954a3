"""How weights start and follow their gradients: initialisation, optimizers, learning rates, L1."""

import math

import torch
import xxhash
from torch import Tensor, nn

from models.spec import Schedule, Training

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Momentum at rates of zero and at the peak: Smith (2018), section 5.
MOMENTUM = 0.95, 0.85


def random_seed(seed: int, epoch: int, use: str) -> int:
    """The seed of one use of randomness: a function of its arguments and of nothing before."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{use}".encode()) >> 1


def generator(seed: int, epoch: int, use: str) -> torch.Generator:
    """A CPU generator for one use of randomness."""
    return torch.Generator().manual_seed(random_seed(seed, epoch, use))


def initialise(network: nn.Module, training: Training) -> None:
    """Draw the weights anew, biases zero, unless it is `default`; embeddings stay as they are.

    Xavier uniform (Glorot, Bengio 2010); He normal for ReLU (He et al. 2015). A recurrent layer's
    gates are drawn one by one: from the input like dense layers, from the state orthogonal (Saxe,
    McClelland, Ganguli 2014), so that gradients keep their length from step to step.
    """
    if training.initialisation == "default":
        return
    random = generator(training.seed, 0, "initialisation")

    def drawn(shape: torch.Size) -> Tensor:
        weight = torch.empty(shape)
        if training.initialisation == "xavier":
            return nn.init.xavier_uniform_(weight, generator=random)
        return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=random)

    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, LAYERS):
                layer.weight.copy_(drawn(layer.weight.shape))
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.RNNBase):
                for name, parameter in layer.named_parameters(recurse=False):
                    for gate in parameter.split(layer.hidden_size):
                        if name.startswith("bias"):
                            gate.zero_()
                        elif name.startswith("weight_hh"):
                            start = torch.empty(gate.shape)
                            gate.copy_(nn.init.orthogonal_(start, generator=random))
                        else:
                            gate.copy_(drawn(gate.shape))


def optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer for all parameters of the network."""
    settings = training.optimizer
    fused, foreach = (settings.implementation == name for name in ("fused", "foreach"))
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                network.parameters(),
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
                fused=fused,
                foreach=foreach,
            )
        case "adam":
            kind: type[torch.optim.Adam] = torch.optim.Adam
        case "adamw":
            kind = torch.optim.AdamW
    return kind(
        network.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=fused,
        foreach=foreach,
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


def momentum(schedule: Schedule, share: float) -> float | None:
    """The momentum at a share of the peak rate, None where it is the optimizer's own."""
    resting, peak = MOMENTUM
    return resting + (peak - resting) * share if schedule.cycle_momentum else None


def follow(descent: torch.optim.Optimizer, training: Training, share: float) -> None:
    """Set the optimizer's rate, and where it cycles its momentum, to a share of the peak rate."""
    found = momentum(training.schedule, share)
    for group in descent.param_groups:
        group["lr"] = training.optimizer.lr * share
        if found is not None and "betas" in group:
            group["betas"] = (found, training.optimizer.beta2)
        elif found is not None:
            group["momentum"] = found


def add_l1(parameters: list[Tensor], strength: float) -> None:
    """Add the gradient of `strength` times the sum of absolute weights; biases are left alone."""
    for parameter in parameters:
        if parameter.ndim > 1 and parameter.grad is not None:
            parameter.grad.add_(parameter.detach().sign(), alpha=strength)
