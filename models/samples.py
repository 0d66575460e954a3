"""A version's recorded sample as bytes: tensors by name, texts included."""

from collections.abc import Iterable, Mapping

import numpy as np
import safetensors.numpy

from models.data import Tensors
from models.tensors import TensorSpec

_ZERO, _KEPT = b"\0", b"\xc0\x80"
"""The zero character, and how it is kept: by two bytes that stand together in no UTF-8."""


def packed(text: object) -> bytes:
    """A text as it is kept."""
    return str(text).encode().replace(_ZERO, _KEPT)


def save(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors in safetensors' format, which knows no texts.

    Texts, dtype object, are kept as UTF-8, UINT8 with one dimension more, zeros behind the shorter
    ones.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.dtype != object:
            found[name] = tensor
            continue
        texts = [packed(text) for text in tensor.reshape(-1)]
        width = max(1, *map(len, texts)) if texts else 1
        padded = b"".join(text.ljust(width, _ZERO) for text in texts)
        found[name] = np.frombuffer(padded, np.uint8).reshape(*tensor.shape, width)
    return safetensors.numpy.save(found)


def load(content: bytes, specs: Iterable[TensorSpec]) -> Tensors:
    """The tensors again, BYTES as `specs` tell; raises ValueError and SafetensorError."""
    found = safetensors.numpy.load(content)
    for spec in specs:
        kept = found.get(spec.name)
        if spec.datatype != "BYTES" or kept is None:
            continue
        if kept.dtype != np.uint8 or kept.ndim != 1 + len(spec.shape):
            raise ValueError(f"sample {spec.name!r} holds no texts")
        rows = [row.tobytes().rstrip(_ZERO) for row in kept.reshape(-1, kept.shape[-1])]
        texts = [row.replace(_KEPT, _ZERO).decode() for row in rows]
        found[spec.name] = np.array(texts, object).reshape(kept.shape[:-1])
    return found
