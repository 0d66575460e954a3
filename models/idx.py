"""The idx format of MNIST and its successors (Y. LeCun): arrays of bytes, gzipped or not."""

import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 0x08
LARGEST = 1_000_000_000
GZIP = 16 + zlib.MAX_WBITS


def read_idx(payload: bytes, dimensions: int) -> NDArray[np.uint8]:
    """The array uint8 of an idx file with that many dimensions; raises ValueError.

    The header is checked before the values are decompressed, and no more of them than it announces.
    """
    size = 4 + 4 * dimensions
    head = _start(payload, size)
    if len(head) < size or head[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise ValueError(f"not an idx file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    count = math.prod(shape)
    if count > LARGEST:
        raise ValueError(f"its header announces {count:,} bytes, over {LARGEST:,}")
    content = _start(payload, size + count + 1)
    if len(content) != size + count:
        found = "more" if len(content) > size + count else f"{len(content) - size:,}"
        raise ValueError(f"it holds {found} bytes of values, its header announces {count:,}")
    return np.frombuffer(content, np.uint8, count, size).reshape(shape)


def _start(payload: bytes, limit: int) -> bytes:
    """The first bytes of the content, decompressed where it is gzipped."""
    if not payload.startswith(b"\x1f\x8b"):
        return payload[:limit]
    reader = zlib.decompressobj(GZIP)
    try:
        found = reader.decompress(payload, limit)
    except zlib.error as error:
        raise ValueError(f"the gzip file is damaged: {error}") from None
    return found
