"""Structured pruning by torch-pruning: whole channels go, so that what is left is a dense network.

Source: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning" (2023).
"""

import copy
import logging

import torch
from torch import Tensor, nn

from models.forms import FormError
from tasks.inference import scarce

# What torch-pruning would cut without cutting what depends on it.
UNPRUNABLE = (nn.RNNBase, nn.MultiheadAttention)


class PruningError(FormError):
    """The network cannot be pruned; the message says what is in the way."""


def pruned(network: nn.Module, inputs: tuple[Tensor, ...], share: float) -> nn.Module:
    """A copy of the network without the given share of the channels of every layer.

    Those of the least L2 norm go, over all weights that belong to a channel. `inputs` are a few
    rows to follow it by; embeddings and the output stay as they are. Raises PruningError.
    """
    from torch_pruning.pruner import MagnitudePruner
    from torch_pruning.pruner.importance import MagnitudeImportance

    found = copy.deepcopy(network).eval()
    layers = list(found.modules())
    for layer in layers:
        if isinstance(layer, UNPRUNABLE):
            raise PruningError(f"torch-pruning cannot prune a {type(layer).__name__}")
    kept = [layer for layer in layers if isinstance(layer, nn.Embedding)]
    weighted = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    with torch.no_grad():
        shape = found(*inputs).shape
    MagnitudePruner(
        found,
        inputs,
        importance=MagnitudeImportance(p=2),
        pruning_ratio=share,
        ignored_layers=[*kept, *weighted[-1:]],
    ).step()
    try:
        with torch.no_grad():
            cut = found(*inputs).shape
    except RuntimeError as error:
        if scarce(error):
            raise
        raise PruningError(f"what torch-pruning leaves does not fit together: {error}") from error
    if cut != shape:
        raise PruningError(f"pruning changed the output from {list(shape)} to {list(cut)}")
    if weights(found) >= weights(network):
        raise PruningError("torch-pruning finds no channel that could go")
    return found


def weights(network: nn.Module) -> int:
    """Number of weights without biases and normalisation, which an export may fold away."""
    return sum(value.numel() for value in network.parameters() if value.ndim > 1)
