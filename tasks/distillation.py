"""What a student learns from: the target, and the answer of the network it shall be like."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.forms import FormError
from models.layers import Loss
from models.objectives import Classification, Objective, Regression
from models.spec import Retraining
from models.transcription import Transcription
from tasks.batches import Rows
from tasks.loop import LossFunction


class DistillationError(FormError):
    """An objective whose answers have no distance that a student could learn from."""


def distilling(
    hard: Loss, objective: Objective, teacher: nn.Module, retraining: Retraining
) -> LossFunction:
    """The mean of the loss `hard` to the target and of that to the teacher's output.

    Raises DistillationError for an objective whose outputs have no distance.
    """
    share = retraining.soft
    if not share:
        return lambda output, target, _: hard(output, target)
    soft = _distance(objective, retraining.temperature)

    def loss(output: Tensor, target: Tensor, rows: Rows) -> Tensor:
        with torch.no_grad():
            taught = teacher(*rows.values())
        return (1 - share) * hard(output, target) + share * soft(output, taught)

    return loss


def _distance(objective: Objective, temperature: float) -> Loss:
    """From two outputs [n, ..., width]; of classes the divergence times the temperature's square,
    so that its gradient keeps its size (Hinton, Vinyals, Dean 2015). Letters of a transcription are
    classes of each frame (Takashima, Li, Kawai 2018)."""
    if isinstance(objective, Regression):
        return functional.mse_loss
    if isinstance(objective, Classification | Transcription):

        def divergence(output: Tensor, taught: Tensor) -> Tensor:
            found = functional.kl_div(
                functional.log_softmax(output.flatten(0, -2) / temperature, dim=1),
                functional.log_softmax(taught.flatten(0, -2) / temperature, dim=1),
                reduction="batchmean",
                log_target=True,
            )
            return found * temperature**2

        return divergence
    raise DistillationError(
        f"a {type(objective).__name__} cannot be distilled: with budget.retraining.soft=0 a student"
        " learns from the targets alone"
    )
