"""The digest of a table: its values column by column, whatever file or chunks they came from."""

import blake3
import numpy as np
import polars as pl
import pyarrow as pa

from models.digests import Digest, canonical_json


def table_digest(table: pl.DataFrame) -> Digest:
    """BLAKE3 over names, types, nulls and values; independent of row groups, chunks and encoding.

    What lies in a slot that is null does not count. Raises TypeError for a nested type other
    than a fixed-size array of numbers.
    """
    schema = [[name, str(kind)] for name, kind in table.schema.items()]
    hasher = blake3.blake3(canonical_json({"rows": table.height, "columns": schema}))
    for column in table.iter_columns():
        _update(hasher, column)
    return hasher.hexdigest()


def _update(hasher: "blake3.blake3", column: pl.Series) -> None:
    nulls = column.is_null()
    # Both cases are marked: else values that begin like a bitmap could pass for one.
    hasher.update(b"nulls" if nulls.any() else b"whole")
    if nulls.any():
        hasher.update(np.packbits(nulls.to_numpy()).tobytes())
        column = column.drop_nulls()
    if column.dtype == pl.Categorical:
        # Its codes number what this process happened to see.
        column = column.cast(pl.String)
    kind = column.dtype
    if kind in (pl.String, pl.Binary):
        text = column.rechunk().to_arrow()
        wanted = pa.large_string() if kind == pl.String else pa.large_binary()
        text = text.cast(wanted) if text.type != wanted else text
        offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset :][: len(text) + 1]
        if len(text):
            hasher.update((offsets - offsets[0]).view(np.uint8).data)
        data = text.buffers()[2]
        if data is not None and len(text):
            hasher.update(memoryview(data)[offsets[0] : offsets[-1]])
        return
    if isinstance(kind, pl.Array):
        values = column.to_numpy()
        if values.dtype == object:
            raise TypeError(f"{column.name}: no digest for {kind}")
    elif kind.is_nested():
        raise TypeError(f"{column.name}: no digest for {kind}")
    else:
        values = column.to_physical().to_numpy()
    hasher.update(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
