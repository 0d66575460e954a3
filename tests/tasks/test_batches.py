import numpy as np
import pytest

from models.padding import LENGTH
from tasks.batches import Batches, Encoded, Held, Stored, in_order, settled
from tasks.dataset import tensors
from tests.tasks.conftest import Made

MEGABYTE_OF_ROWS = 1e6 / 16


class Numbered:
    """Rows that are their own number, in blocks; counts what is read."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.row_bytes = 16.0
        self.reads = 0

    def read(self, block: int) -> Encoded:
        self.reads += 1
        start = sum(self.counts[:block])
        numbers = np.arange(start, start + self.counts[block])
        return {"x": numbers.reshape(-1, 1)}, numbers


def order(batches: Batches, epoch: int, first: int = 0) -> list[list[int]]:
    found = []
    for rows, target in batches.epoch(epoch, first):
        assert rows["x"][:, 0].tolist() == target.tolist()
        found.append(target.tolist())
    return found


def streamed(window: int, size: int = 8, parts: int = 1) -> Batches:
    source = Numbered(30, 7, 0, 41, 12, 30, 3)
    return Batches(source, size, 5, megabytes=window / MEGABYTE_OF_ROWS, parts=parts)


def test_held_and_streamed_rows_come_in_the_same_order() -> None:
    source = Numbered(30, 7, 0, 41, 12, 30, 3)
    held = Batches(settled(source, 64), 8, 5)
    assert isinstance(held.source, Held)
    for epoch in range(2):
        assert order(held, epoch) == order(streamed(123), epoch)


@pytest.mark.parametrize("window", [1, 20, 50, 123])
def test_an_epoch_is_every_row_at_most_once_in_whole_batches(window: int) -> None:
    batches = streamed(window)
    found = order(batches, 0)
    assert [len(batch) for batch in found] == [8] * (123 // 8)
    flat = [number for batch in found for number in batch]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(123))
    assert order(batches, 0) == found != order(batches, 1)


@pytest.mark.parametrize("window", [1, 50, 123])
def test_from_any_step_the_rest_of_an_epoch_is_the_same(window: int) -> None:
    whole = order(streamed(window), 3)
    for first in range(len(whole) + 1):
        assert order(streamed(window), 3, first) == whole[first:]


def test_a_window_is_shuffled_as_one_and_no_larger_than_it_may_be() -> None:
    source = Numbered(*[10] * 20)
    batches = Batches(source, 30, 0, megabytes=30 / MEGABYTE_OF_ROWS)
    for batch in order(batches, 0):
        assert len({number // 10 for number in batch}) == 3
        assert batch != sorted(batch)
    assert source.reads == 18, "what only the last, dropped rows need is not read"


def test_rows_that_fit_a_window_are_read_once() -> None:
    batches = streamed(123)
    for epoch in range(3):
        order(batches, epoch)
    assert isinstance(batches.source, Numbered)
    assert batches.source.reads == 7


# ---- rows of different length


class Lengthy(Numbered):
    """Rows of 1 to 50 positions, each filled with its own number; a block is as long as it must."""

    def read(self, block: int) -> Encoded:
        rows, numbers = super().read(block)
        lengths = 1 + numbers * 17 % 50
        inside = np.arange(lengths.max(initial=1)) < lengths[:, None]
        return {"x": np.where(inside, rows["x"], -0.0), LENGTH: lengths}, numbers


def lengthy(window: int) -> Batches:
    source = Lengthy(30, 7, 41, 12, 30, 3)
    return Batches(source, 8, 5, megabytes=window / MEGABYTE_OF_ROWS)


@pytest.mark.parametrize("window", [20, 50, 123])
def test_rows_of_like_length_share_a_batch_that_is_as_long_as_its_longest(window: int) -> None:
    taken, found = 0, []
    for rows, target in lengthy(window).epoch(0):
        lengths = rows[LENGTH]
        assert lengths.tolist() == [1 + number * 17 % 50 for number in target.tolist()]
        assert rows["x"].shape == (8, lengths.max())
        for row, number, length in zip(rows["x"], target, lengths, strict=True):
            assert (row[:length] == number).all()
            assert not row[length:].any()
        taken += rows["x"].numel()
        found.append(target.tolist())
    flat = [number for batch in found for number in batch]
    assert len(found) == 15
    assert len(set(flat)) == len(flat) == 120
    useful = sum(1 + number * 17 % 50 for number in flat)
    assert taken < (1.5 if window == 123 else 2.2) * useful
    assert [b for b in found if b != sorted(b)], "the order within a batch is by length alone"


@pytest.mark.parametrize("window", [20, 123])
def test_from_any_step_the_rest_of_such_an_epoch_is_the_same(window: int) -> None:
    def targets(epoch: int, first: int) -> list[list[int]]:
        return [target.tolist() for _, target in lengthy(window).epoch(epoch, first)]

    whole = targets(3, 0)
    assert whole != targets(4, 0)
    for first in range(len(whole) + 1):
        assert targets(3, first) == whole[first:]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_in_order_gives_all_rows_whatever_the_blocks_are(size: int) -> None:
    parts = [target for _, target in in_order(Numbered(30, 7, 0, 41), size)]
    assert np.concatenate(parts).tolist() == list(range(78))
    assert {len(part) for part in parts[:-1]} <= {size}


def test_a_batch_is_a_multiple_of_its_parts_and_too_few_rows_are_an_error() -> None:
    assert streamed(123, size=500, parts=4).size == 120
    with pytest.raises(ValueError, match="3 training rows cannot be cut into 4 parts"):
        Batches(Numbered(3), 8, 0, parts=4)


@pytest.mark.parametrize("subset", ["train", "validation"])
def test_stored_rows_are_those_of_the_split(made: Made, subset: str) -> None:
    for dataset in (made.trips, made.shapes):
        source = Stored(dataset, subset)  # type: ignore[arg-type]
        expected, target = tensors(dataset, subset)  # type: ignore[arg-type]
        assert sum(source.counts) == len(target)
        blocks = [source.read(block) for block in range(len(source.counts))]
        assert tuple(len(t) for _, t in blocks) == source.counts
        np.testing.assert_array_equal(np.concatenate([t for _, t in blocks]), target)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(np.concatenate([i[name] for i, _ in blocks]), tensor)
        assert source.row_bytes > 0
