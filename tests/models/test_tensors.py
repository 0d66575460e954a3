import numpy as np
import pytest

from models.tensors import TensorSpec

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_batch_of_any_length_fits(rows: int) -> None:
    SPEC.check(np.zeros((rows, 3), np.float32))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((2, 4), np.float32), r"shape \[2, 4\], expected \[-1, 3\]"),
        (np.zeros(3, np.float32), r"shape \[3\], expected \[-1, 3\]"),
        (np.zeros((2, 3, 1), np.float32), "expected"),
        (np.zeros((2, 3), np.float64), "float64, expected FP32"),
        (np.zeros((2, 3), np.int32), "int32, expected FP32"),
    ],
)
def test_another_shape_or_type_is_named(tensor: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPEC.check(tensor)
