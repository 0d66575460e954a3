"""Log-mel spectrograms: how loud a sound is at every moment in bands the ear tells apart.

Short-time Fourier transform with a Hann window; triangular filters equally spaced on the mel scale
(O'Shaughnessy 1987), after Davis, Mermelstein 1980 and The HTK Book (Young et al. 2006, section
5.6). NumPy in double precision: the same code prepares training rows and requests.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.open import Frozen

QUIETEST = 1e-8
"""Energy that stands for silence, about a hundredth of the step of 16-bit samples."""


class LogMel(Frozen):
    """The settings of a spectrogram."""

    bands: int = Field(40, ge=4, le=256)
    """Filters between `low` and half the sampling rate."""
    low: float = Field(60.0, ge=0, le=1000)
    """Lower end of the lowest filter, in hertz."""
    window: float = Field(0.025, ge=0.005, le=0.1)
    """Length of a frame, in seconds."""
    hop: float = Field(0.01, ge=0.002, le=0.1)
    """Distance of two frames, in seconds."""

    def frames(self, samples: int, rate: int) -> int:
        """Frames of so many samples: every one that lies whole within them."""
        return max(0, 1 + (samples - round(self.window * rate)) // round(self.hop * rate))

    def spectrogram(self, samples: NDArray[np.int16], rate: int) -> NDArray[np.float32]:
        """Natural logarithm of the energy, float32 [frames, bands], of samples int16 [n]."""
        length, hop = round(self.window * rate), round(self.hop * rate)
        if not self.frames(len(samples), rate):
            return np.zeros((0, self.bands), np.float32)
        framed = np.lib.stride_tricks.sliding_window_view(samples / 32768.0, length)[::hop]
        size = 1 << (length - 1).bit_length()
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        energy = np.abs(np.fft.rfft(framed * hann, size)) ** 2 / np.sum(hann**2)
        filters = _filters(self.bands, self.low, rate, size)
        # Not a matrix product: its order of summation depends on the processor.
        banded = np.stack([np.sum(energy[:, at] * w, axis=1) for at, w in filters], axis=1)
        found: NDArray[np.float32] = np.log(np.maximum(banded, QUIETEST)).astype(np.float32)
        return found


@lru_cache(maxsize=8)
def _filters(bands: int, low: float, rate: int, size: int) -> list[tuple[slice, NDArray[Any]]]:
    """The bins every filter covers, and their weights."""
    edges = np.linspace(_mel(low), _mel(rate / 2), bands + 2)
    places = 700 * (10 ** (edges / 2595) - 1)
    bins = np.arange(size // 2 + 1) * rate / size
    found = []
    for left, middle, right in zip(places, places[1:], places[2:], strict=False):
        weights = np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
        inside = np.flatnonzero(weights > 0)
        if not len(inside):
            # Narrower than a bin: the nearest one stands for it.
            inside, weights = np.array([np.argmin(np.abs(bins - middle))]), np.ones_like(bins)
        at = slice(int(inside[0]), int(inside[-1]) + 1)
        found.append((at, weights[at]))
    return found


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))
