import gzip
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from models.idx import LARGEST, read_idx


def idx(array: NDArray[np.uint8], kind: int = 8) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [idx(VALUES), gzip.compress(idx(VALUES))], ids=["plain", "gz"])
def test_an_array_comes_back(packed: bytes) -> None:
    np.testing.assert_array_equal(read_idx(packed, 3), VALUES)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x08\x03\x00", "not an idx file"),
        (idx(VALUES, kind=0x0D), "not an idx file of unsigned bytes in 3 dimensions"),
        (idx(VALUES[0]), "in 3 dimensions"),
        (idx(VALUES)[:-1], "it holds 23 bytes of values, its header announces 24"),
        (idx(VALUES) + b"x", "it holds more bytes of values, its header announces 24"),
        (gzip.compress(idx(VALUES), mtime=0)[:-12], "its header announces 24"),
        (b"\x1f\x8b" + b"junk" * 9, "the gzip file is damaged"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 9, 20_000, 20_000), f"over {LARGEST:,}"),
    ],
)
def test_what_is_not_whole_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_idx(payload, 3)


def test_no_more_is_decompressed_than_the_header_announces() -> None:
    bomb = gzip.compress(idx(VALUES) + bytes(200_000_000), compresslevel=1)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(ValueError, match="it holds more bytes"):
        read_idx(bomb, 3)
    assert tracemalloc.get_traced_memory()[1] < 1_500_000
    tracemalloc.stop()
