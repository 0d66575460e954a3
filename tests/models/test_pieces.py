"""Objects in pieces: read one after the other they hold what the object holds."""

import csv
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data import Data, RefusedObject
from models.pieces import LONGEST, csv_pieces, parquet_pieces, tar_pieces
from models.records import read_records
from tests.tasks import samples

TYPES = {"trip": pl.Int64, "note": pl.String}
NOTES = ("plain", 'a "word"', "two\nlines", "a,comma", "", "né\r\n")


def table(rows: int, seed: int = 0) -> pl.DataFrame:
    chosen = random.Random(seed)
    notes = [chosen.choice(NOTES) for _ in range(rows)]
    return pl.DataFrame({"trip": range(rows), "note": notes})


def written(folder: Path, content: bytes, name: str = "raw") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def as_csv(rows: pl.DataFrame) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([rows.columns, *rows.rows()])
    return text.getvalue().encode()


@pytest.mark.parametrize("size", [40, 100, 1000, 100_000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_csv_pieces_are_cut_between_records_only(tmp_path: Path, size: int, end: bytes) -> None:
    rows = table(300)
    content = as_csv(rows).removesuffix(b"\n") + end
    pieces = list(csv_pieces(written(tmp_path, content), size))
    assert (len(pieces) == 1) == (size >= len(content))
    parts = []
    for first, payload in pieces:
        part = read_records("a.csv", payload, TYPES)
        assert not part.refused.height
        parts.append(part.rows.with_columns(pl.col("row") + first))
    joined = pl.concat(parts)
    assert joined.get_column("row").to_list() == list(range(300))
    # An empty field reads as null.
    assert joined.get_column("note").fill_null("").to_list() == rows.get_column("note").to_list()


def test_a_csv_record_that_never_ends_is_refused(tmp_path: Path) -> None:
    content = b'trip,note\n1,"' + b"x" * (100 * (LONGEST + 2))
    with pytest.raises(RefusedObject, match="see quotes"):
        list(csv_pieces(written(tmp_path, content), 100))


def test_parquet_pieces_hold_every_row_in_order(tmp_path: Path) -> None:
    rows = table(5000)
    rows.write_parquet(tmp_path / "raw", row_group_size=700)
    pieces = list(parquet_pieces(tmp_path / "raw", 10_000))
    assert len(pieces) > 3
    parts = [pl.read_parquet(io.BytesIO(payload)) for _, payload in pieces]
    assert pl.concat(parts).equals(rows)
    assert [p.first for p in pieces] == [0, *np.cumsum([part.height for part in parts])[:-1]]


def test_a_small_parquet_object_is_one_piece_as_it_is(tmp_path: Path) -> None:
    table(50).write_parquet(tmp_path / "raw")
    [piece] = parquet_pieces(tmp_path / "raw", 1 << 20)
    assert piece == (0, (tmp_path / "raw").read_bytes())


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedObject, match="not readable as parquet"):
        list(parquet_pieces(written(tmp_path, b"PAR1 and nothing else"), 5))


@pytest.mark.parametrize("size", [1500, 5000, 1 << 20])
def test_tar_pieces_hold_every_member_in_order(tmp_path: Path, size: int) -> None:
    content = samples.shapes(range(40))
    data: Data = samples.SHAPES
    whole = data.parse("a.tar", content, {}).rows
    pieces = list(data.pieces("a.tar", written(tmp_path, content), size))
    assert (len(pieces) == 1) == (size >= len(content))
    parts = [
        data.parse("a.tar", payload, {}).rows.with_columns(pl.col("row") + first)
        for first, payload in pieces
    ]
    assert pl.concat(parts).equals(whole)


def test_long_names_and_folders_in_a_tar_go_with_their_members(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(12):
            folder = tarfile.TarInfo(f"{number}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            member = tarfile.TarInfo(f"{number}/{'x' * 150}")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"%03d" % number))
    found = []
    for first, payload in tar_pieces(written(tmp_path, packed.getvalue()), 2000):
        with tarfile.open(fileobj=io.BytesIO(payload)) as archive:
            files = [m for m in archive if m.isfile()]
            found += [(first + i, m.name, archive.extractfile(m)) for i, m in enumerate(files)]
    assert [(n, name) for n, name, _ in found] == [(i, f"{i}/{'x' * 150}") for i in range(12)]


@pytest.mark.parametrize("cut", [700, 5000])
def test_a_tar_that_was_cut_short_is_refused_before_its_first_piece(
    tmp_path: Path, cut: int
) -> None:
    content = samples.shapes(range(40))[:-cut].rstrip(b"\0")
    pieces = tar_pieces(written(tmp_path, content), 1500)
    with pytest.raises(RefusedObject, match="not a whole tar archive"):
        next(pieces)
