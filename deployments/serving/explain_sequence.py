"""Occlusion of texts and of sound: what becomes of the answer when a stretch of it is hidden.

Windows overlap by half, and what a place is worth is the mean of the windows over it. What is put
in its place is what training has shown the network there: an unknown token, or the clip's mean.
"""

import base64
import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.serving.explanation import CHUNK, Floats, Question, Score, Words, png
from deployments.serving.protocol import Tensors
from models.audio import AudioFeatures
from models.padding import LENGTH
from models.texts import TextFeatures
from models.transcription import Transcription
from models.vocabulary import PADDING, UNKNOWN, texts_of

MOST_WINDOWS = 128
"""Windows over one text or clip; they are wider where it is longer."""
TOKENS = 2
"""Least tokens that are hidden at a time."""
SECONDS = 0.2
"""Least time that is hidden at a time."""
SOUND_CHUNK = 8
"""Clips computed at once: one takes many times what an image takes."""


class Windows(NamedTuple):
    """Windows over so many places, which together cover them all."""

    places: int
    width: int
    starts: range

    @property
    def step(self) -> int:
        return self.starts.step

    @classmethod
    def over(cls, count: int, least: int) -> "Windows":
        """At most `MOST_WINDOWS`, each of at least `least` places if there are so many."""
        width = min(max(1, count), max(least, math.ceil(2 * count / MOST_WINDOWS)))
        step = max(1, width // 2)
        return cls(count, width, range(0, max(1, count - width + step), step))

    def chunks(self, size: int, hidden: Callable[[Sequence[int]], Tensors]) -> Iterator[Tensors]:
        """Rows with the windows at these starts hidden; the last one, at -1, is left as it is."""
        rows = [*self.starts, -1]
        for start in range(0, len(rows), size):
            yield hidden(rows[start : start + size])

    def worth(self, scores: Floats) -> NDArray[np.float64]:
        """What every place is worth, [places]: how much lower the scores are without it."""
        found, covered = np.zeros(self.places), np.zeros(self.places)
        for start, drop in zip(self.starts, scores[-1] - scores[:-1], strict=True):
            found[start : start + self.width] += drop
            covered[start : start + self.width] += 1
        return found / np.maximum(covered, 1)


def of_text(
    features: TextFeatures, tokens: NDArray[np.int64], words: Words, score: Score
) -> Question:
    """What each token of one text [1, length] adds to a class's probability, or to a number."""
    windows = Windows.over(int(np.count_nonzero(tokens[0] != PADDING)), TOKENS)

    def hidden(starts: Sequence[int]) -> Tensors:
        rows = np.repeat(tokens, len(starts), axis=0)
        for row, start in zip(rows, starts, strict=True):
            if start >= 0:
                row[start : min(start + windows.width, windows.places)] = UNKNOWN
        return {"tokens": rows}

    def explain(out: Floats) -> dict[str, Any]:
        scores = score(out).astype(np.float64)
        # Half a character is told with its other half.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        told: list[dict[str, Any]] = []
        waiting = 0.0
        read = tokens[0, : windows.places]
        for place, worth in enumerate(windows.worth(scores)):
            piece = texts_of(features.vocabulary, [int(read[place])])
            text = decoder.decode(piece, final=place == windows.places - 1)
            waiting += float(worth)
            if text:
                told.append({"text": text, "attribution": round(waiting, 6)})
                waiting = 0.0
        return {
            "method": "occlusion",
            "explained": words(out),
            "value": float(scores[-1]),
            "window": windows.width,
            "occluded_by": "unknown token",
            "attributions": told,
        }

    return Question(len(windows.starts) + 1, windows.chunks(CHUNK, hidden), explain)


def of_sound(features: AudioFeatures, objective: Transcription, tensors: Tensors) -> Question:
    """On which stretches of one clip its transcript hangs, by the logarithm of its probability."""
    sound, frames = tensors["spectrogram"], int(tensors[LENGTH][0])
    hop = features.mel.hop
    windows = Windows.over(frames, round(SECONDS / hop))
    mean = sound[0, :frames].mean(axis=0)

    def hidden(starts: Sequence[int]) -> Tensors:
        rows = np.repeat(sound, len(starts), axis=0)
        for row, start in zip(rows, starts, strict=True):
            if start >= 0:
                row[start : min(start + windows.width, frames)] = mean
        return {"spectrogram": rows, LENGTH: np.full(len(rows), frames, np.int64)}

    def explain(out: Floats) -> dict[str, Any]:
        said, scores = objective.log_likelihood(out)
        # What a network holds for impossible is no number; nothing is rarer than this.
        scores = np.maximum(scores, -100.0)
        worth = windows.worth(scores)
        stretches = [
            {
                "start": round(start * hop, 3),
                "end": round(min(start + windows.step, frames) * hop, 3),
                "attribution": round(float(worth[start : start + windows.step].mean()), 6),
            }
            for start in range(0, frames, windows.step)
        ]
        level = sound[0, :frames].T[::-1]  # low sounds below
        low, high = float(level.min()), float(level.max())
        grey = np.clip((level - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        return {
            "method": "occlusion",
            "explained": f"log-probability a letter of \u201c{said}\u201d",
            "value": float(scores[-1]),
            "window": round(windows.width * hop, 3),
            "occluded_by": "mean of the clip",
            "attributions": stretches,
            "png": base64.b64encode(tinted(grey, worth)).decode(),
        }

    return Question(len(windows.starts) + 1, windows.chunks(SOUND_CHUNK, hidden), explain)


def tinted(grey: NDArray[np.uint8], worth: NDArray[np.float64]) -> bytes:
    """A PNG of the spectrogram [bands, T]: red where it speaks for the answer, blue against it."""
    strength = worth / (np.abs(worth).max() or 1.0)
    colours = np.where(strength[:, None] > 0, (235.0, 45.0, 20.0), (40.0, 95.0, 245.0))
    share = 0.65 * np.abs(strength)[:, None]  # what is heard shows through
    return png(grey[:, :, None] * (1 - share) + colours * share)
