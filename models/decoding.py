"""From the probabilities of a CTC network to text: the likeliest path, or a search over texts.

A network trained with CTC (Graves et al. 2006) gives, for every frame, the probability of each
letter and of *blank*, symbol 0. A text is a path less its repetitions and then its blanks, so many
paths are one text. A frame of zeros lies behind the end and is passed over.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLANK = 0
RAREST = 1e-4
"""A symbol less likely than that at a frame is not followed by the search."""


Prior = Callable[[tuple[int, ...], int], float]
"""What a text gains, as a logarithm, by one more symbol, or by its end, which is BLANK."""


class Decoded(NamedTuple):
    """Symbols of a text without blanks, and the natural logarithm of what the network gives it."""

    symbols: tuple[int, ...]
    log_probability: float


def decode(frames: NDArray[np.floating[Any]], beam: int, prior: Prior | None = None) -> Decoded:
    """The text of one row's probabilities [T, symbols].

    A beam of 1 follows the likeliest path, whatever is known of texts; a wider one searches.
    """
    kept: NDArray[np.float64] = frames[frames.sum(axis=1) > 0.5].astype(np.float64)
    return _greedy(kept) if beam == 1 else _search(kept, beam, prior or _nothing)


def _nothing(text: tuple[int, ...], symbol: int) -> float:
    del text, symbol
    return 0.0


def _greedy(frames: NDArray[np.float64]) -> Decoded:
    best = frames.argmax(axis=1) if len(frames) else np.zeros(0, np.int64)
    changes = np.diff(best, prepend=BLANK) != 0
    symbols = best[changes & (best != BLANK)]
    return Decoded(tuple(int(s) for s in symbols), float(np.log(frames.max(axis=1)).sum()))


def _search(frames: NDArray[np.float64], beam: int, prior: Prior) -> Decoded:
    """Prefix beam search (Hannun et al. 2014): all paths of one text count together.

    Texts are ranked by what the network gives them and by what is known of texts, which are
    multiplied (shallow fusion).

    Of every text the probability of its paths that end in a blank, and of those that do not; scaled
    at every frame, so that long clips do not underflow.
    """
    texts: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    gains: dict[tuple[int, ...], float] = {(): 0.0}
    scale = 0.0
    for frame in frames:
        followed = [(int(s), float(frame[s])) for s in np.flatnonzero(frame > RAREST)]
        found: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for text, (blank, letter) in texts.items():
            for symbol, share in followed:
                if symbol == BLANK:
                    found[text][0] += (blank + letter) * share
                elif text and symbol == text[-1]:
                    # Two equal letters without a blank between them are one.
                    found[text][1] += letter * share
                    found[(*text, symbol)][1] += blank * share
                else:
                    found[(*text, symbol)][1] += (blank + letter) * share
        ranked = []
        for text, both in found.items():
            if text not in gains:
                gains[text] = gains[text[:-1]] + prior(text[:-1], text[-1])
            if sum(both):
                ranked.append((-math.log(sum(both)) - gains[text], text, both))
        ranked = sorted(ranked)[:beam]
        total = sum(sum(both) for _, _, both in ranked)
        texts = {text: (blank / total, letter / total) for _, text, (blank, letter) in ranked}
        scale += math.log(total)
    best = max(
        texts, key=lambda text: math.log(sum(texts[text])) + gains[text] + prior(text, BLANK)
    )
    return Decoded(best, scale + math.log(sum(texts[best])))


def log_likelihood(
    frames: NDArray[np.floating[Any]], symbols: Sequence[int]
) -> NDArray[np.float64]:
    """Natural logarithm of what each row of probabilities [n, T, symbols] gives a text, [n].

    The forward algorithm of CTC: the sum over all paths that are the text.
    """
    path = np.zeros(2 * len(symbols) + 1, np.int64)
    path[1::2] = symbols
    # From one letter to the next without a blank, unless they are equal.
    skips = np.zeros(len(path), bool)
    skips[2:] = (path[2:] != BLANK) & (path[2:] != path[:-2])
    with np.errstate(divide="ignore"):
        given = np.log(frames.astype(np.float64)[:, :, path])
    found = np.full((len(frames), len(path) + 2), -np.inf)
    found[:, 2] = 0.0  # before the first frame: two places of nothing, then the path
    inside = frames.sum(axis=2) > 0.5
    begun = np.zeros(len(frames), bool)
    for time in range(frames.shape[1]):
        stay, step, skip = found[:, 2:], found[:, 1:-1], np.where(skips, found[:, :-2], -np.inf)
        after = np.logaddexp(np.logaddexp(stay, step), skip) + given[:, time]
        # The first frame is a blank or the first letter.
        first = np.full_like(after, -np.inf)
        first[:, :2] = given[:, time, :2]
        after = np.where(begun[:, None], after, first)
        found[:, 2:] = np.where(inside[:, time, None], after, found[:, 2:])
        begun |= inside[:, time]
    ends: NDArray[np.float64] = np.logaddexp(found[:, -1], found[:, -2] if symbols else -np.inf)
    return ends


def one_hot(symbols: Sequence[int], width: int) -> NDArray[np.float32]:
    """Probabilities [T, width] that are sure of a text."""
    path: list[int] = []
    for symbol in symbols:
        # A blank keeps equal letters apart.
        path += [BLANK, symbol]
    return np.eye(width, dtype=np.float32)[path or [BLANK]]
