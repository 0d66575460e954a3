import numpy as np
import torch

from models.padding import LENGTH, LENGTHY_BATCH, computed, joined, pieces, trimmed

LENGTHS = np.array([3, 1, 7, 2, 7, 5] * 5)
ROWS = {
    "x": np.where(np.arange(9) < LENGTHS[:, None], np.arange(30)[:, None] + 1.0, 0.0),
    LENGTH: LENGTHS,
}


def test_shorter_rows_are_filled_up_with_zeros_whatever_their_rank() -> None:
    found = joined([np.ones((2, 3, 4)), 2 * np.ones((1, 5, 4))])
    assert found.shape == (3, 5, 4)
    assert found[:2, :3].min() == found[:2, :3].max() == 1
    assert not found[:2, 3:].any()
    assert (found[2] == 2).all()
    assert joined([np.ones(2), np.zeros(1)]).tolist() == [1, 1, 0]
    assert joined([np.ones((2, 2), np.int64), np.ones((1, 1), np.int64)]).dtype == np.int64


def test_trimming_leaves_what_some_row_has() -> None:
    found = trimmed({name: t[:2] for name, t in ROWS.items()})
    assert found["x"].tolist() == [[1, 1, 1], [2, 0, 0]]
    assert trimmed({n: torch.from_numpy(t) for n, t in ROWS.items()})["x"].shape == (30, 7)


def test_without_lengths_nothing_changes() -> None:
    plain = {"x": ROWS["x"]}
    assert trimmed(plain)["x"] is ROWS["x"]
    assert [len(part["x"]) for _, part in pieces(plain, 8)] == [8, 8, 8, 6]
    np.testing.assert_array_equal(computed(lambda rows: rows["x"], plain, 8), ROWS["x"])


def test_rows_of_like_length_are_computed_together_and_come_back_in_order() -> None:
    seen = []

    def compute(rows: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(rows["x"].shape)
        return rows["x"] * 2

    found = computed(compute, ROWS, 1024)
    np.testing.assert_array_equal(found, 2 * ROWS["x"][:, :7])
    assert [count for count, _ in seen] == [LENGTHY_BATCH, 30 - LENGTHY_BATCH]
    assert [length for _, length in seen] == sorted(length for _, length in seen)
    assert seen[0][1] < 7
