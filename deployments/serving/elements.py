"""Elements of tensors, from JSON values and raw bytes and back; shared by every protocol.

What a caller claims never sizes an allocation: a shape must account for exactly the data that came
before an array is made. Little-endian throughout; a BYTES element is a 4-byte length and its bytes,
UTF-8 here and `str` in an object array: ONNX Runtime turns `bytes` into the text "b'...'".
"""

import math
import struct
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.tensors import NUMPY, TensorSpec

_ELEMENTS: dict[str, set[type]] = {"BOOL": {bool}, "BYTES": {str}}
for _name in NUMPY.keys() - _ELEMENTS.keys():
    _ELEMENTS[_name] = {int, float, type(None)} if _name.startswith("FP") else {int}


_PACKED = {
    f"{sign}INT{bits}": letter if sign else letter.lower()
    for sign in ("", "U")
    for bits, letter in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))
} | {"FP32": "f", "FP64": "d"}
"""How `struct` calls what NumPy's constructor takes three times as long for."""
_SHORT = 6
"""Bytes a value: longer ones are sooner looked at than the text they were read from."""


def check_shape(given: Any, spec: TensorSpec) -> list[int]:
    """A caller's shape, once it fits the spec and no length is under 1; raises ValueError."""
    if type(given) is not list or not set(map(type, given)) <= {int}:
        raise ValueError(f"input {spec.name!r}: shape must be a list of whole numbers")
    wanted = [n if m == -1 else m for m, n in zip(spec.shape, given, strict=False)]
    if wanted != given or len(given) != len(spec.shape) or min(given, default=1) < 1:
        raise ValueError(f"input {spec.name!r} has shape {given[:9]}, expected {list(spec.shape)}")
    return given


def from_json(
    data: Any, shape: list[int], spec: TensorSpec, text: bytes | None = None
) -> NDArray[Any]:
    """An array of `shape` and the spec's dtype from flat or nested JSON values; may be read-only.

    Nothing is converted silently: raises ValueError for another type, a value out of range, another
    count or nesting. `text` is what the values were read from.
    """
    wanted = f"input {spec.name!r}: data must hold {spec.datatype} values in shape {shape}"
    if type(data) is not list:
        raise ValueError(wanted + ", as a list")
    if data and type(data[0]) is list:
        if len(data) != shape[0]:
            raise ValueError(f"{wanted}: {len(data)} rows, not {shape[0]}")
        # Level by level in C loops; flattening never holds more than the parsed JSON does.
        for length in shape[1:]:
            if set(map(type, data)) != {list} or set(map(len, data)) != {length}:
                raise ValueError(f"{wanted}: the nested lists do not have that shape")
            data = list(chain.from_iterable(data))
    count = math.prod(shape)
    if len(data) != count:
        raise ValueError(f"{wanted}: {len(data)} values, not {count}")
    letter = _PACKED.get(spec.datatype)
    if letter is not None and not _booleans(data, text):
        try:
            packed = struct.pack(f"<{count}{letter}", *data)
            return np.frombuffer(packed, NUMPY[spec.datatype]).reshape(shape)
        except (struct.error, OverflowError):
            pass  # null, or what is refused: below it is told which
    if not set(map(type, data)) <= _ELEMENTS[spec.datatype]:
        raise ValueError(f"{wanted}: some values are of another type")
    if spec.datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = data
        return array.reshape(shape)
    try:
        if spec.datatype.startswith("FP"):
            with np.errstate(over="raise"):
                return np.array(data, np.float64).astype(spec.dtype, copy=False).reshape(shape)
        return np.array(data, spec.dtype).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise ValueError(f"{wanted}: some values are out of range") from None


def _booleans(data: list[Any], text: bytes | None) -> bool:
    """Whether there may be any among the values; `struct` takes them for numbers."""
    if text is not None and len(text) < _SHORT * len(data):
        return b"true" in text or b"false" in text
    return bool in set(map(type, data))


def from_binary(
    body: bytes, offset: int, size: int, shape: list[int], spec: TensorSpec
) -> NDArray[Any]:
    """An array of `shape` and the spec's dtype over `size` bytes of `body` from `offset`.

    It is a read-only view when its elements are aligned. Raises ValueError when the bytes are not
    exactly what the shape takes.
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _unpack(memoryview(body)[offset : offset + size], count, spec.name).reshape(shape)
    dtype = NUMPY[spec.datatype]
    if size != count * dtype.itemsize:
        raise ValueError(
            f"input {spec.name!r}: shape {shape} of {spec.datatype} takes {count * dtype.itemsize}"
            f" bytes, binary_data_size is {size}",
        )
    array = np.frombuffer(body, dtype, count, offset).reshape(shape)
    if dtype == np.bool_ and array.view(np.uint8).max() > 1:
        raise ValueError(f"input {spec.name!r}: a BOOL is the byte 0 or 1")
    # The JSON part has any length; kernels may assume that elements are aligned.
    return array if array.flags.aligned else array.copy()


def _unpack(content: memoryview, count: int, name: str) -> NDArray[Any]:
    if 4 * count > len(content):  # before an array of `count` elements is made
        raise ValueError(f"input {name!r} is cut short: {count} texts announced")
    array, at = np.empty(count, object), 0
    for index in range(count):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            raise ValueError(f"input {name!r} is cut short in text {index} of {count}")
        try:
            array[index] = str(content[at + 4 : end], "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"input {name!r}: text {index} is not UTF-8") from None
        at = end
    if at != len(content):
        raise ValueError(f"input {name!r}: {len(content) - at} bytes follow the last text")
    return array


def pack(array: NDArray[Any]) -> bytes:
    """The raw bytes of an array in C order; an object array holds `str`."""
    if array.dtype != object:
        return array.tobytes()
    contents = [text.encode() for text in array.reshape(-1)]
    return b"".join(part for c in contents for part in (len(c).to_bytes(4, "little"), c))
