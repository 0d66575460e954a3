"""CIFAR-10's python batches (Krizhevsky 2009), read without running what a pickle may ask for.

A batch is a pickle of a dict with `data`, a NumPy array uint8 [n, 3072], and `labels`. Every opcode
is looked at before the first one runs. The three names NumPy's arrays are pickled with stand for
records of what was written, so not even NumPy is called with a stranger's arguments; any other name
is refused.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
SHAPE = (3, 32, 32)
OPCODES = {
    "PROTO", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE",
    "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE", "PUT", "BINPUT", "LONG_BINPUT",
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


class _Record:
    """What a pickle says of an object: the arguments to make it and its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """A call of NumPy's `_reconstruct`."""


class _Type(_Record):
    """A call of `numpy.dtype`."""


NAMES: dict[tuple[str, str], type[_Record]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Record,
    ("numpy", "dtype"): _Type,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        found = NAMES.get((module, name))
        if found is None:
            raise ValueError(f"it names {module}.{name}, which no batch does: it was not opened")
        return found


def read_batch(payload: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels uint8 [n, 3, 32, 32] and a label for each; raises ValueError."""
    try:
        _inspect(payload)
        batch = _Reader(io.BytesIO(payload), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(
            f"not a CIFAR-10 python batch: {str(error) or type(error).__name__}"
        ) from None
    fields = {_text(k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    labels, data = fields.get("labels"), fields.get("data")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("not a CIFAR-10 python batch: it has no list of labels")
    pixels = _pixels(data)
    if len(pixels) != len(labels):
        raise ValueError(f"it holds {len(pixels):,} images and {len(labels):,} labels")
    return pixels, labels


def _inspect(payload: bytes) -> None:
    """Raise ValueError unless every opcode is one that a batch is written with."""
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name not in OPCODES:
            raise ValueError(f"it has the opcode {opcode.name}, which no batch has")
        if opcode.name in MEMO and not 0 <= int(argument or 0) <= len(payload):
            # The memo grows to the largest index: a few bytes could ask for any memory.
            raise ValueError(f"it numbers an object {argument:,}")
        if opcode.name == "GLOBAL":
            _Reader(io.BytesIO()).find_class(*str(argument).split(" ", 1))


def _pixels(found: Any) -> NDArray[np.uint8]:
    """The array a record describes, once it is one of bytes in C order of the right shape."""
    state = found.state if isinstance(found, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("not a CIFAR-10 python batch: its data is no array")
    _, shape, kind, fortran, content = state
    written = [_text(a) for a in kind.arguments[:1]] if isinstance(kind, _Type) else []
    size = int(np.prod(SHAPE))
    fits = isinstance(shape, tuple) and len(shape) == 2 and all(type(x) is int for x in shape)
    fits = fits and shape[0] >= 0 and shape[1] == size
    if written != ["u1"] or not fits or fortran or not isinstance(content, bytes):
        raise ValueError(f"its data is no array of bytes [n, {size}]")
    if shape[0] * size != len(content):
        raise ValueError(f"its data is cut short: {len(content):,} bytes for shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(-1, *SHAPE)


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value
