import pytest
import torch
from torch import Tensor, nn

from models.objectives import Classification, Objective, Regression
from models.spec import Retraining
from models.transcription import Transcription
from tasks.distillation import DistillationError, distilling

CLASSES = Classification(target="label", labels=("a", "b", "c"))
NUMBER = Regression(target="y", unit="1")


def mean(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


def loss(objective: Objective, teacher: nn.Module, output: Tensor, **fields: float) -> float:
    of = distilling(mean, objective, teacher, Retraining.model_validate(fields))
    return float(of(output, torch.zeros(2), {"x": torch.ones(2, 3)}))


@pytest.mark.parametrize("objective", [CLASSES, NUMBER])
def test_a_student_that_answers_as_its_teacher_has_only_the_loss_of_the_targets(
    objective: Objective,
) -> None:
    same = torch.ones(2, 3)
    assert loss(objective, nn.Identity(), same, soft=0.25) == pytest.approx(0.75)
    assert loss(objective, nn.Identity(), same, soft=1) == pytest.approx(0.0, abs=1e-6)


def test_the_shares_and_the_temperature_count() -> None:
    other = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert loss(CLASSES, nn.Identity(), other, soft=0) == pytest.approx(float(other.mean()))
    found = {loss(CLASSES, nn.Identity(), other, soft=1, temperature=t) for t in (1.0, 4.0)}
    assert len(found) == 2
    # As given by Hinton: the sum of p log(p / q) of both rows over their number, times T squared.
    p = torch.full((2, 3), 1 / 3)
    q = torch.softmax(other / 4, dim=1)
    expected = float((p * (p / q).log()).sum() / 2 * 16)
    assert max(found) == pytest.approx(expected, rel=1e-4)


def test_letters_are_learnt_frame_by_frame() -> None:
    letters = Transcription(target="t", alphabet="ab")
    taught = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    student = taught.clone()
    student[1, 3] = torch.tensor([2.0, 0.0, 0.0])
    p, q = (torch.softmax(x[1, 3] / 4, dim=0) for x in (taught, student))
    # Only one of ten frames differs.
    expected = float((p * (p / q).log()).sum() / 10 * 16)
    of = distilling(mean, letters, nn.Identity(), Retraining(soft=1.0))
    assert float(of(student, torch.zeros(2), {"x": taught})) == pytest.approx(expected, rel=1e-4)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = nn.Linear(3, 3)
    output = torch.zeros(2, 3, requires_grad=True)
    of = distilling(mean, CLASSES, teacher, Retraining())
    of(output, torch.zeros(2), {"x": torch.ones(2, 3)}).backward()
    assert output.grad is not None
    assert teacher.weight.grad is None


def test_an_objective_whose_outputs_have_no_distance_is_refused() -> None:
    class Ranking(Regression):
        pass

    assert loss(Ranking(target="y", unit="1"), nn.Identity(), torch.ones(2, 3)) >= 0
    with pytest.raises(DistillationError, match="cannot be distilled"):
        distilling(mean, object(), nn.Identity(), Retraining())  # type: ignore[arg-type]
