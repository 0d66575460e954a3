"""Smaller networks made of a trained one: pruned, or fresh at a size of its family's table.

Each is trained by the loop of tasks.loop, so it repeats exactly and a killed one goes on.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn

from models.digests import Digest
from models.forms import FormError, parts
from models.layers import Served
from models.spec import Training, student
from tasks.batches import Batches, Source, Stored, settled
from tasks.distillation import distilling
from tasks.isolated import Emit
from tasks.jobs import CompressJob
from tasks.loop import optimize
from tasks.optimization import initialise
from tasks.pruning import pruned, weights
from tasks.store import store
from tasks.trainer import loss_function

Judged = Callable[[str, Served], None]
"""Told the name of a form and its network halfway; raises where that is to go no further."""


class StudentError(FormError):
    """A network that has nothing to learn from another; the message says why."""


class Students:
    """The smaller networks of one trained network, by the name of their form."""

    def __init__(self, job: CompressJob, teacher: Served, example: dict[str, Any]) -> None:
        self.job, self.teacher = job, teacher
        self.inputs = tuple(torch.from_numpy(tensor[:2]) for tensor in example.values())

    def begun(self, name: str) -> nn.Module:
        """The network before it has learnt; raises StudentError or PruningError."""
        network, form = self.teacher.network, parts(name)
        if form.share is not None:
            return pruned(network, self.inputs, form.share)
        assert form.size is not None
        signature, training = self.job.dataset.signature, self.job.training
        torch.manual_seed(training.seed)
        model = student(self.job.model, form.size)
        fresh = model.build(signature.features, signature.objective.width)
        initialise(fresh, training)
        if weights(fresh) >= weights(network):
            raise StudentError(
                f"{name} has {weights(fresh):,} weights and its teacher {weights(network):,}: a"
                " student must be smaller; take another size out of budget.candidates"
            )
        return fresh

    def taught(
        self, name: str, network: nn.Module, emit: Emit, judged: Judged | None = None
    ) -> Served:
        """The network after it has learnt, ready for inference on the CPU.

        Halfway, its rate past its peak, it is `judged`: whatever that raises ends its training.
        """
        training, served = self.training, Served(network, self.job.dataset.signature.objective)

        def begins(epoch: int) -> None:
            if judged and epoch and epoch == training.epochs // 2:
                judged(name, served)

        device = torch.device("cuda" if training.device == "cuda" else "cpu")
        objective = self.job.dataset.signature.objective
        batches = Batches(
            self.source, training.batch_size, training.seed,
            megabytes=training.window_mb, parts=training.accumulate, device=device,
        )  # fmt: skip
        teacher = self.teacher.network.to(device)
        hard = loss_function(self.job.dataset, training)
        place = _place(self.job.cache, name)
        optimize(
            network.to(device),
            distilling(hard, objective, teacher, self.job.budget.retraining),
            training,
            batches,
            checkpoint=place,
            begins=begins,
            emit=lambda detail: emit({"network": name, **detail}),
        )
        if place:
            store().delete(place)
        self.teacher.cpu()
        return Served(network.cpu(), objective).eval()

    @cached_property
    def training(self) -> Training:
        """How students are trained: as the network was, but for what the budget says."""
        training, retraining = self.job.training, self.job.budget.retraining
        optimizer = training.optimizer
        return training.model_copy(
            update={
                "epochs": retraining.epochs or training.epochs,
                "optimizer": optimizer.model_copy(update={"lr": optimizer.lr * retraining.lr}),
                "patience": 0,
                "ranks": 1,
            }
        )

    @cached_property
    def source(self) -> Source:
        """The training rows, held in memory where they fit a window."""
        return settled(Stored(self.job.dataset, "train"), self.training.window_mb)


def _place(cache: Digest | None, name: str) -> str | None:
    """Where a killed training goes on from; beside the candidates, and forgotten with them."""
    return f"candidates/{cache}/{name}.training" if cache else None
