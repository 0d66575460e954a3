"""The ranks of a data-parallel training, seen from inside one of them.

Every rank is a process that holds the whole network. Each computes the gradient of its share of a
batch, and all take the step that the mean of the gradients leads to. Every random number is a
function of the rank too, so that no two drop the same values.
"""

import datetime
import os
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from models.spec import Training

# Until the last rank has joined; how long one may think before the others give up.
PATIENCE = datetime.timedelta(minutes=30)


class Ranks(NamedTuple):
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def joined(cls, training: Training) -> "Ranks":
        """The ranks that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name, when all are there.

        Raises ValueError where they are not as many as the training says.
        """
        if training.ranks == 1:
            return cls()
        found = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if found.world != training.ranks:
            raise ValueError(f"training.ranks is {training.ranks}, {found.world} were started")
        distributed.init_process_group(
            "nccl" if training.device == "cuda" else "gloo", timeout=PATIENCE
        )
        return found

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def use(self, name: str) -> str:
        """The name of a use of randomness in this rank; a single one keeps the name."""
        return name if self.world == 1 else f"{name} of rank {self.rank}"

    def averaged(self, network: nn.Module, loss: Tensor) -> Tensor:
        """Put the mean of all ranks' gradients into the network; the mean of their losses [].

        In one vector, whose sum is always taken in the same order. DistributedDataParallel cuts it
        into buckets anew after the first step it takes, so a run that resumes would sum otherwise.
        """
        if self.world == 1:
            return loss
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat(
            [*(g.flatten() for g in gradients), loss.reshape(1).to(gradients[0].dtype)]
        )
        distributed.all_reduce(flat)
        flat /= self.world
        parts = flat[:-1].split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        averaged: Tensor = flat[-1].to(loss.dtype)
        return averaged

    def agree(self, network: nn.Module) -> None:
        """Give every rank the network of the first: each has seen other rows, and normalises so."""
        if self.world > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            distributed.barrier()

    def leave(self) -> None:
        """End the group, when this rank has nothing more to say."""
        if self.world > 1:
            distributed.destroy_process_group()
