import numpy as np
import pytest

from models.images import ImageFeatures, ImageSize
from models.objectives import Classification
from models.signature import Signature

SIGNATURE = Signature(
    features=ImageFeatures(size=ImageSize(), mean=1.5, deviation=0.1),
    objective=Classification(target="label", labels=("a", "b")),
)


def test_it_comes_back_from_json_with_its_classes() -> None:
    assert Signature.model_validate_json(SIGNATURE.model_dump_json()) == SIGNATURE


@pytest.mark.parametrize(
    ("found", "expected", "closeness"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([-4.0], [-2.0], 1.0),
        ([0.5], [0.0], 0.5),
    ],
)
def test_closeness_is_relative_to_the_largest_expected_value(
    found: list[float], expected: list[float], closeness: float
) -> None:
    assert SIGNATURE.closeness(np.array(found), np.array(expected)) == pytest.approx(closeness)
