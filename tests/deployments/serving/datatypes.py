"""Features that have a tensor of every datatype; a module, so that a server finds them."""

from typing import Any

import numpy as np
import polars as pl

from models.data import Features, Tensors
from models.tensors import NUMPY, TensorSpec


class EveryDatatype(Features):
    """Tensors `bool` to `fp64`, [n, 2] each; a version's sample cannot hold BYTES."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec.model_validate({"name": name.lower(), "datatype": name, "shape": (-1, 2)})
            for name in NUMPY
            if name != "BYTES"
        )

    def encode(self, rows: pl.DataFrame) -> Tensors:
        raise NotImplementedError

    def read(self, payload: bytes, media_type: str) -> pl.DataFrame:
        raise NotImplementedError

    def write(self, row: pl.DataFrame) -> tuple[bytes, str]:
        raise NotImplementedError

    def tensors(self, rows: int) -> dict[str, Any]:
        """Rows of every tensor, [0, 1] each."""
        column = np.tile(np.array([0, 1]), (rows, 1))
        return {spec.name: column.astype(spec.dtype) for spec in self.inputs}
