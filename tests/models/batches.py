"""CIFAR-10 batches, opcode by opcode as Python 2 wrote the published ones."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def batch(pixels: NDArray[np.uint8], labels: Sequence[int], name: bytes = b"data_batch_1") -> bytes:
    """The pickle of pixels uint8 [n, 3072] and their labels: protocol 2, strings as bytes."""
    content = pixels.tobytes()
    kind = b"cnumpy\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87Rq\x0e"
    kind += b"(K\x03U\x01|q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\t"
    array += b"U\x01bq\n\x87Rq\x0b(K\x01" + b"".join(map(_number, pixels.shape)) + b"\x86"
    array += kind + b"\x89T" + struct.pack("<i", len(content)) + content + b"tb"
    names = b"".join(_short(b"%05d.png" % index) for index in range(len(labels)))
    return (
        b"\x80\x02}q\x01("
        + _short(b"batch_label") + _short(name)
        + _short(b"labels") + b"]q\x05(" + b"".join(map(_number, labels)) + b"e"
        + _short(b"data") + array
        + _short(b"filenames") + b"](" + names + b"e"
        + b"u."
    )  # fmt: skip
