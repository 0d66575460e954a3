"""Features that have a tensor of every datatype, or texts; a module: a server finds them."""

from typing import Any

import numpy as np
import polars as pl

from models.data import Features, Tensors
from models.tensors import NUMPY, TensorSpec


class EveryDatatype(Features):
    """Tensors `bool` to `fp64`, [n, 2] each; texts are apart, in `Numerals`."""

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


class Numerals(EveryDatatype):
    """One tensor `numerals` BYTES [n, 2], numbers as they are written."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="numerals", datatype="BYTES", shape=(-1, 2)),)
