import numpy as np
import pytest
import torch

from models import cnn, mlp
from models.data import Features
from models.images import ImageFeatures, ImageSize
from models.layers import Residual, Served, TableInput, balanced, training_loss
from models.objectives import Classification, Objective, Regression
from models.spec import Family
from models.tables import FittedCategory, FittedNumber, TableFeatures

NUMBERS = TableFeatures(
    numbers=(
        FittedNumber(name="a", unit="1", mean=10, deviation=2),
        FittedNumber(name="b", unit="1", mean=-1, deviation=0.5),
    ),
    categories=(FittedCategory(name="c", vocabulary=("x", "y", "z")),),
)
ONLY_CATEGORIES = TableFeatures(numbers=(), categories=NUMBERS.categories)
ONLY_NUMBERS = TableFeatures(numbers=NUMBERS.numbers, categories=())
PICTURES = ImageFeatures(size=ImageSize(height=12, width=16), mean=100, deviation=50)
MINUTES = Regression(target="t", unit="min", mean=5, deviation=2)
ANIMAL = Classification(target="a", labels=("cat", "dog", "owl"))


def inputs(features: Features, rows: int) -> list[torch.Tensor]:
    found = []
    for spec in features.inputs:
        shape = (rows, *spec.shape[1:])
        found.append(torch.from_numpy(np.ones(shape, spec.dtype)))
    return found


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("objective", [MINUTES, ANIMAL])
@pytest.mark.parametrize(
    ("family", "features"),
    [
        (mlp.Spec(size="tiny"), NUMBERS),
        (mlp.Spec(size="small"), ONLY_NUMBERS),
        (mlp.Spec(size="tiny"), ONLY_CATEGORIES),
        (cnn.Spec(size="tiny"), PICTURES),
        (cnn.Spec(size="small"), PICTURES),
        (cnn.Spec(size="lenet"), PICTURES),
        (cnn.Spec(size="vgg"), PICTURES),
        (cnn.Spec(size="resnet"), PICTURES),
    ],
)
def test_a_network_answers_with_the_tensor_its_objective_declares(
    family: Family, features: Features, objective: Objective, rows: int
) -> None:
    torch.manual_seed(0)
    served = Served(family.build(features, objective.width), objective).eval()
    with torch.inference_mode():
        output = served(*inputs(features, rows)).numpy()
    objective.output.check(output)
    assert output.shape[0] == rows
    assert np.isfinite(output).all()


@pytest.mark.parametrize(
    ("family", "size"), [(mlp, s) for s in mlp.SIZES] + [(cnn, s) for s in cnn.SIZES]
)
def test_every_size_of_the_table_can_be_chosen(family: object, size: str) -> None:
    spec = family.Spec(size=size)  # type: ignore[attr-defined]
    features = NUMBERS if family is mlp else PICTURES
    assert sum(p.numel() for p in spec.build(features, 1).parameters()) > 0


@pytest.mark.parametrize(("family", "features"), [(cnn.Spec(), NUMBERS), (mlp.Spec(), PICTURES)])
def test_a_family_refuses_features_of_another_kind(family: Family, features: Features) -> None:
    with pytest.raises(TypeError, match="this family takes"):
        family.build(features, 1)


def test_an_image_too_small_to_halve_that_often_is_refused() -> None:
    small = ImageFeatures(size=ImageSize(height=4, width=28), mean=100, deviation=50)
    with pytest.raises(ValueError, match="size vgg halves an image 3 times: 28 x 4 is too small"):
        cnn.Spec(size="vgg").build(small, 2)
    assert cnn.Spec(size="resnet").build(small, 2).eval()(*inputs(small, 3)).shape == (3, 2)


@pytest.mark.parametrize(
    ("channels", "side", "padding", "flat", "parameters"),
    # PyTorch's tutorial of CIFAR-10 has 62,006 parameters; LeCun's 28x28 digits are padded.
    [
        (3, 32, 0, 16 * 5 * 5, 62_006),
        (1, 32, 0, 16 * 5 * 5, 61_706),
        (1, 28, 2, 16 * 7 * 7, 107_786),
    ],
)
def test_lenet_is_the_classic_one(
    channels: int, side: int, padding: int, flat: int, parameters: int
) -> None:
    size = ImageSize(channels=channels, height=side, width=side)
    features = ImageFeatures(size=size, mean=100, deviation=50)
    network = cnn.Spec(size="lenet").build(features, 10)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    dense = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    assert [(c.out_channels, c.kernel_size, c.padding) for c in convolutions] == [
        (6, (5, 5), (padding, padding)),
        (16, (5, 5), (padding, padding)),
    ]
    assert [(d.in_features, d.out_features) for d in dense] == [(flat, 120), (120, 84), (84, 10)]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(*inputs(features, 2)).shape == (2, 10)
    wide = ImageFeatures(size=ImageSize(height=33, width=50), mean=100, deviation=50)
    assert cnn.Spec(size="lenet").build(wide, 3)(*inputs(wide, 2)).shape == (2, 3)


def test_a_residual_block_starts_from_its_input() -> None:
    block = Residual(4, 4, 1).eval()
    for parameter in block.body.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)
    assert Residual(4, 8, 2)(torch.rand(2, 4, 7, 5)).shape == (2, 8, 4, 3)


def test_a_missing_number_counts_as_the_mean_and_is_marked() -> None:
    layer = TableInput(ONLY_NUMBERS)
    missing = layer(torch.tensor([[float("nan"), -1.0]]))
    mean = layer(torch.tensor([[10.0, -1.0]]))
    assert missing.tolist() == [[0, 0, 1, 0]]
    assert mean.tolist() == [[0, 0, 0, 0]]


def test_a_far_outlier_stays_finite_and_small() -> None:
    found = TableInput(ONLY_NUMBERS)(torch.tensor([[1e38, float("inf")]]))
    assert torch.isfinite(found).all()
    assert found.max() < 100


def test_a_served_regression_speaks_in_the_unit_of_its_target() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    output = Served(network, MINUTES)(torch.tensor([[0.0], [1.0], [-2.0]]))
    assert output.tolist() == [5.0, 7.0, 1.0]


def test_served_probabilities_add_up_to_1() -> None:
    output = Served(torch.nn.Identity(), ANIMAL)(torch.tensor([[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]]))
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2))
    assert output.argmax(dim=1).tolist() == [2, 0]


def test_the_loss_of_a_regression_is_of_the_standardised_target() -> None:
    loss = training_loss(MINUTES, 0.0)(torch.tensor([[0.0], [1.0]]), torch.tensor([5.0, 11.0]))
    assert loss.item() == pytest.approx((0 + 4) / 2)


def test_label_smoothing_makes_certainty_cost_something() -> None:
    sure, target = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([0])
    assert training_loss(ANIMAL, 0.0)(sure, target).item() == pytest.approx(0, abs=1e-6)
    assert training_loss(ANIMAL, 0.1)(sure, target).item() > 1


def test_balanced_weights_make_every_class_count_alike() -> None:
    counts = {"cat": 10, "dog": 20, "owl": 70}
    weights = balanced(ANIMAL, counts)
    shares = [float(w) * counts[label] for w, label in zip(weights, ANIMAL.labels, strict=True)]
    assert shares == pytest.approx([100 / 3] * 3)
    wrong = torch.tensor([[0.0, 0.0, 5.0]] * 2)
    loss = training_loss(ANIMAL, 0.0, weights)(wrong, torch.tensor([0, 2]))
    assert loss > training_loss(ANIMAL, 0.0)(wrong, torch.tensor([0, 2]))


@pytest.mark.parametrize(("kind", "expected"), [("l1", 2.0), ("huber", 1.5), ("objective", 4.0)])
def test_a_regression_may_take_a_loss_outliers_move_less(kind: str, expected: float) -> None:
    loss = training_loss(MINUTES, 0.0, kind=kind)  # type: ignore[arg-type]
    assert loss(torch.tensor([[0.0]]), torch.tensor([9.0])).item() == pytest.approx(expected)
    if kind != "objective":
        with pytest.raises(TypeError, match=f"training.loss: {kind} is no loss for Classification"):
            training_loss(ANIMAL, 0.0, kind=kind)  # type: ignore[arg-type]
