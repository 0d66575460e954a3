"""A raw object on disk in pieces of bounded size, each a raw object of the same kind.

What is larger than memory is read piece by piece. An object of at most the size is one piece, as
it is.
"""

import io
import itertools
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data import Piece, RefusedObject

LONGEST = 8
"""Pieces that one CSV record may span before its quotes are taken to be broken."""


def whole(path: Path) -> Iterator[Piece]:
    """The object as one piece."""
    yield Piece(0, path.read_bytes())


def csv_pieces(path: Path, size: int) -> Iterator[Piece]:
    """Records of a CSV object, about `size` bytes at a time, each time below its header."""
    if path.stat().st_size <= size:
        yield from whole(path)
        return
    with path.open("rb") as stream:
        header, first, rest = stream.readline(), 0, b""
        while block := stream.read(size):
            rest += block
            ends = _record_ends(rest)
            if len(ends):
                cut = int(ends[-1]) + 1
                yield Piece(first, header + rest[:cut])
                first, rest = first + len(ends), rest[cut:]
            elif len(rest) > LONGEST * size:
                raise RefusedObject(f"record {first} is over {LONGEST * size:,} bytes: see quotes")
        if rest:
            yield Piece(first, header + rest)


def _record_ends(content: bytes) -> NDArray[np.int64]:
    """Positions of the newlines that end a record: those outside of quotes."""
    characters = np.frombuffer(content, np.uint8)
    ends = characters == ord("\n")
    if b'"' in content:
        ends &= ~np.logical_xor.accumulate(characters == ord('"'))
    return np.flatnonzero(ends)


def parquet_pieces(path: Path, size: int) -> Iterator[Piece]:
    """Rows of a Parquet object, about `size` uncompressed bytes at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            known = file.metadata
            total = sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
            if total <= size:
                yield from whole(path)
                return
            first, rows = 0, max(1, size * known.num_rows // total)
            for batch in file.iter_batches(batch_size=rows):
                packed = io.BytesIO()
                pq.write_table(pa.Table.from_batches([batch]), packed, compression="none")
                yield Piece(first, packed.getvalue())
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise RefusedObject(f"not readable as parquet: {error}") from None


def tar_pieces(path: Path, size: int) -> Iterator[Piece]:
    """Members of a tar archive, about `size` bytes at a time.

    Raises RefusedObject before the first piece when the archive is not whole.
    """
    if path.stat().st_size <= size:
        yield from whole(path)
        return
    starts, is_file = array("q"), bytearray()
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                starts.append(member.offset)
                is_file.append(member.isfile())
                # It keeps every member it has read, in more memory than the smallest take.
                archive.members.clear()  # type: ignore[attr-defined]
            end = int(archive.offset)
    except tarfile.TarError as error:
        raise RefusedObject(f"not a whole tar archive: {error}") from None
    with path.open("rb") as stream:
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise RefusedObject("not a whole tar archive: it has no end mark")
        first = records = start = 0
        for counted, stop in zip(is_file, itertools.chain(starts[1:], [end]), strict=True):
            records += counted
            if records > first and (stop - start >= size or stop == end):
                stream.seek(start)
                yield Piece(first, stream.read(stop - start) + tarfile.NUL * 2 * tarfile.BLOCKSIZE)
                first, start = records, stop
