"""Names, types and shapes of a model's tensors, in the words of the Open Inference Protocol v2."""

from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from models.open import Frozen

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}


class TensorSpec(Frozen):
    """One input or output tensor; -1 is a dimension of any length, the first one is the batch."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,63}$")
    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DTypeLike:
        """The NumPy type of the tensor's elements."""
        return NUMPY[self.datatype]

    def check(self, tensor: NDArray[Any]) -> None:
        """Raise ValueError unless dtype and shape fit."""
        fits = tensor.ndim == len(self.shape) and all(
            wanted in (-1, length) for wanted, length in zip(self.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"input {self.name!r} has shape {list(tensor.shape)}, expected {list(self.shape)}"
            )
        if tensor.dtype != self.dtype:
            raise ValueError(f"input {self.name!r} is {tensor.dtype}, expected {self.datatype}")
