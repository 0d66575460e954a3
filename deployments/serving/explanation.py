"""What explanations of all kinds share: questions to a network, and heat maps of its answers."""

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.serving.protocol import Tensors

CHUNK = 32
"""Rows computed at once, between which others have their turn."""
Floats = NDArray[np.floating[Any]]
Words = Callable[[Floats], str]
"""What is explained, given all outputs, of which the last is the row's own."""
Score = Callable[[Floats], Floats]
"""How much of it each of the outputs has."""


class Question(NamedTuple):
    """The rows an explanation takes, and what to make of their outputs."""

    rows: int
    chunks: Iterator[Tensors]
    explain: Callable[[Floats], dict[str, Any]]


def heat_map(image: NDArray[np.uint8], heat: Floats) -> bytes:
    """A PNG of the image [channels, height, width]: red speaks for the answer, blue against it."""
    grey = image.mean(axis=0, keepdims=True)
    strength = heat / (np.abs(heat).max() or 1.0)
    red, blue = np.clip(strength, 0, 1), np.clip(-strength, 0, 1)
    faded = 0.4 * grey[0] * (1 - np.maximum(red, blue))
    colours = [faded + 255 * red, faded + 90 * (red + blue) * 0.5, faded + 255 * blue]
    return png(np.stack(colours, axis=-1))


def png(colours: Floats) -> bytes:
    """A PNG of colours [height, width, 3] from 0 to 255."""
    stream = io.BytesIO()
    Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
