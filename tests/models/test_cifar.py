import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.cifar import read_batch
from tests.models.batches import batch

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
LABELS = [3, 0, 9, 1, 1, 5]


def test_a_batch_comes_back() -> None:
    pixels, labels = read_batch(batch(PIXELS, LABELS))
    assert labels == LABELS
    np.testing.assert_array_equal(pixels, PIXELS.reshape(6, 3, 32, 32))


def test_the_batches_written_here_are_what_pickle_reads() -> None:
    found = pickle.loads(batch(PIXELS, LABELS), encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], PIXELS)
    assert (found[b"labels"], found[b"filenames"][5]) == (LABELS, b"00005.png")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(
    protocol: int, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    evil = pickle.dumps({"labels": LABELS, "data": Touch(made)}, protocol)
    with pytest.raises(ValueError, match=r"posix\.mkdir|the opcode"):
        read_batch(evil)
    assert not made.exists()
    pickle.loads(evil)
    assert made.exists(), "the pickle was harmless, so this test showed nothing"


@pytest.mark.parametrize(
    "name",
    [b"os\nsystem", b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar",
     b"numpy\nndarray.tofile", b"models.cifar\n_Reader", b"nt\nsystem"],
)  # fmt: skip
def test_any_other_name_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="which no batch does"):
        read_batch(b"\x80\x02c" + name + b"\n(U\x02idtR.")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02\x82\x01.",  # an extension registry code
        b"\x80\x02U\x01xQ.",  # a persistent id
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # a name from the stack
        b"(U\x02idios\nsystem\n.",  # INST
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
    ],
)
def test_opcodes_no_batch_has_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="which no batch ha"):
        read_batch(payload)


def test_a_small_pickle_cannot_take_much_memory() -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="it numbers an object"):
        read_batch(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        read_batch(b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"x.")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_what_is_recorded_cannot_be_changed_for_the_next_batch() -> None:
    change = b"cnumpy\ndtype\n}U\x01xK\x01sb"  # BUILD on the class itself
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        read_batch(b"\x80\x02" + change + b".")
    assert read_batch(batch(PIXELS, LABELS))[1] == LABELS


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a CIFAR-10 python batch"),
        (b"\x89PNG\r\n", "not a CIFAR-10 python batch"),
        (batch(PIXELS, LABELS)[:900], "not a CIFAR-10 python batch"),
        (pickle.dumps([1, 2], 2), "it has no list of labels"),
        (batch(PIXELS, [1, 2]), "it holds 6 images and 2 labels"),
        (batch(PIXELS[:, :100], LABELS), "no array of bytes"),
        (batch(PIXELS, LABELS).replace(b"U\x02u1", b"U\x02O8"), "no array of bytes"),
        (batch(PIXELS, LABELS).replace(b"J\x06\0\0\0J\0\x0c", b"J\x07\0\0\0J\0\x0c"), "cut short"),
        (
            batch(PIXELS, LABELS).replace(b"J\x06\0\0\0J\0\x0c", b"U\x01xJ\0\x0c"),
            "no array of bytes",
        ),
        (pickle.dumps({"labels": [1], "data": [2]}, 2), "its data is no array"),
    ],
)
def test_what_is_no_whole_batch_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_batch(payload)


def test_damage_anywhere_is_a_refusal_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    good = batch(PIXELS[:1], LABELS[:1])
    structure = [i for i in range(len(good)) if not 300 < i < len(good) - 60]
    refused = 0
    for _ in range(2000):
        damaged = bytearray(good)
        for position in random.choice(structure, 2):
            damaged[position] = random.integers(256)
        try:
            read_batch(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 500
