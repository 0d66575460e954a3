import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.decoding import BLANK, decode, log_likelihood, one_hot


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s for s, _ in itertools.groupby(path) if s != BLANK)


def every_text(frames: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """The probability of every text, summed over all paths there are."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        share = math.prod(frames[t, s] for t, s in enumerate(path))
        found[collapsed(path)] = found.get(collapsed(path), 0.0) + share
    return found


def random_frames(seed: int, count: int = 5, symbols: int = 3) -> NDArray[np.float64]:
    logits = 2 * np.random.default_rng(seed).standard_normal((count, symbols))
    shares: NDArray[np.float64] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_search_finds_the_likeliest_text_and_its_probability(seed: int) -> None:
    frames = random_frames(seed)
    texts = every_text(frames)
    best = max(texts, key=texts.__getitem__)
    found = decode(frames, 128)
    assert found.symbols == best
    assert found.log_probability == pytest.approx(math.log(texts[best]))


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_the_likeliest_path(seed: int) -> None:
    frames = random_frames(seed)
    found = decode(frames, 1)
    assert found.symbols == collapsed(tuple(frames.argmax(1)))
    assert found.log_probability == pytest.approx(math.log(math.prod(frames.max(1))))


def test_the_search_sees_what_the_likeliest_path_hides() -> None:
    # Blank is the likeliest at either frame, a text of one letter is likelier than none.
    frames = np.array([[0.6, 0.4], [0.6, 0.4]])
    assert decode(frames, 1).symbols == ()
    assert decode(frames, 2).symbols == (1,)


def test_what_is_known_of_texts_counts_beside_the_network() -> None:
    frames = np.array([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05], [0.1, 0.4, 0.5]])

    def prior(text: tuple[int, ...], symbol: int) -> float:
        # Nothing follows a 1 but the end.
        return -2.0 if text[-1:] == (1,) and symbol != BLANK else 0.0

    assert decode(frames, 8).symbols == (1, 2)
    found = decode(frames, 8, prior)
    assert found.symbols == (2, 2)
    texts = every_text(frames)
    assert found.log_probability == pytest.approx(math.log(texts[2, 2]), abs=0.05)
    certain = decode(frames, 8, lambda _, symbol: -9.0 if symbol == BLANK else 0.0)
    assert certain.symbols == (1, 2), "every text ends once"


@pytest.mark.parametrize("beam", [1, 4])
def test_equal_letters_need_a_blank_between_them(beam: int) -> None:
    assert decode(one_hot((1, 1, 2), 3), beam).symbols == (1, 1, 2)
    assert decode(np.eye(3)[[1, 1, 2, 2]], beam).symbols == (1, 2)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_long_clip_does_not_underflow_and_padding_says_nothing(beam: int) -> None:
    frames = np.tile(random_frames(3), (100, 1))
    found = decode(frames, beam)
    assert math.isfinite(found.log_probability)
    assert found.log_probability < -100
    assert decode(np.concatenate([frames, np.zeros((9, 3))]), beam) == found
    certain = np.concatenate([frames, np.eye(3)[[BLANK] * 9]])
    assert decode(certain, beam).symbols == found.symbols
    assert decode(certain, beam).log_probability == pytest.approx(found.log_probability)


@pytest.mark.parametrize("beam", [1, 4])
def test_no_frame_is_no_text(beam: int) -> None:
    assert decode(np.zeros((0, 3)), beam) == ((), 0.0)
    assert decode(np.zeros((2, 3)), beam) == ((), 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_of_a_text_is_that_of_all_its_paths(seed: int) -> None:
    rows = np.stack([random_frames(seed), random_frames(seed + 100)])
    behind = np.concatenate([rows, np.zeros((2, 2, 3))], axis=1)  # two frames behind the end
    texts = [every_text(frames) for frames in rows]
    for text in [(), (1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 1)]:
        expected = [math.log(one[text]) for one in texts]
        np.testing.assert_allclose(log_likelihood(rows, text), expected)
        np.testing.assert_allclose(log_likelihood(behind, text), expected)
    assert log_likelihood(rows, (1,) * 6).tolist() == [-math.inf] * 2
