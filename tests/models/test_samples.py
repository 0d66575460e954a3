import numpy as np
import pytest

from models.samples import load, save
from models.tensors import TensorSpec

WORDS = TensorSpec(name="words", datatype="BYTES", shape=(-1, 2))


def test_texts_and_numbers_come_back_as_they_were() -> None:
    given = {
        "words": np.array([["", "whale"], ["白鲸", "a b "], ["\0", "\0a\0\0"]], object),
        "numbers": np.array([[1.5, np.nan]], np.float32),
    }
    found = load(save(given), (WORDS,))
    assert found["words"].tolist() == given["words"].tolist()
    WORDS.check(found["words"])
    np.testing.assert_array_equal(found["numbers"], given["numbers"])
    none = {"words": np.zeros((0, 2), object)}
    assert load(save(none), (WORDS,))["words"].shape == (0, 2)
    assert load(save({"words": np.array([["", ""]], object)}), (WORDS,))["words"].tolist() == [
        ["", ""]
    ]


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no texts"):
        load(save({"words": np.zeros((1, 2), np.uint8)}), (WORDS,))
