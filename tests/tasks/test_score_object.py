"""One object scored by a worker: in pieces, by several at once, written once."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from models.data import Piece
from models.digests import bytes_digest
from models.pieces import csv_pieces
from models.tables import Tables
from tasks import score_object as worker
from tasks.scoring import ScoredObject, Scoring
from tasks.store import store
from tests.tasks.scored import read, source, unlabelled


def test_two_at_once_leave_one_output(how: Scoring, prefix: str) -> None:
    key = f"{prefix}a.csv"
    store().put(key, unlabelled(range(50)))
    texts = how.model_dump_json(), source(key).model_dump_json()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: worker.score_object(*texts), range(4)))
    [record] = found
    written = [item.key for item in store().list(f"{how.output}{key}/")]
    assert len(written) == 2
    assert ScoredObject.model_validate_json(record).output in written


def test_what_is_written_already_is_what_is_recorded(how: Scoring, prefix: str) -> None:
    key = f"{prefix}a.csv"
    store().put(key, unlabelled(range(50), "50,north,far"))
    texts = how.model_dump_json(), source(key).model_dump_json()
    whole = ScoredObject.model_validate_json(worker.score_object(*texts))
    output = str(whole.output)
    # The same rows in other bytes, as another release of a library writes them.
    packed = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(store().get(output).content)), packed)
    store().delete(output.replace(".parquet", ".json"))
    store().put(output, packed.getvalue())
    again = ScoredObject.model_validate_json(worker.score_object(*texts))
    assert again.blake3 == bytes_digest(packed.getvalue()) != whole.blake3
    assert again.model_copy(update={"blake3": whole.blake3}) == whole
    assert ScoredObject.model_validate_json(worker.score_object(*texts)) == again


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_an_object_in_pieces_gives_the_same_rows(
    how: Scoring, prefix: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = unlabelled(range(200), "201,north,5000")
    if name.endswith(".parquet"):
        packed = io.BytesIO()
        pl.read_csv(content).write_parquet(packed)
        content = packed.getvalue()
    store().put(prefix + name, content)
    texts = how.model_dump_json(), source(prefix + name).model_dump_json()
    whole = ScoredObject.model_validate_json(worker.score_object(*texts))
    table = read(whole)
    monkeypatch.setattr(worker, "PIECE", 500)
    apart = how.model_copy(update={"output": f"pieces/{prefix}"})
    record = worker.score_object(apart.model_dump_json(), texts[1])
    pieces = ScoredObject.model_validate_json(record)
    assert pieces.refusals == whole.refusals
    assert read(pieces).equals(table)
    content = store().get(str(pieces.output)).content
    assert pq.read_metadata(io.BytesIO(content)).num_row_groups > 2


def test_one_piece_at_a_time_is_in_memory(
    how: Scoring, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    class Payload(bytes):
        def __del__(self) -> None:
            alive.remove(len(self))

    def pieces(self: Tables, name: str, path: Path, size: int) -> Iterator[Piece]:
        for first, payload in csv_pieces(path, 500):
            assert not alive
            alive.append(len(payload))
            yield Piece(first, Payload(payload))

    store().put(f"{prefix}a.csv", unlabelled(range(200)))
    monkeypatch.setattr(Tables, "pieces", pieces)
    texts = how.model_dump_json(), source(f"{prefix}a.csv").model_dump_json()
    found = ScoredObject.model_validate_json(worker.score_object(*texts))
    content = store().get(str(found.output)).content
    assert pq.read_metadata(io.BytesIO(content)).num_row_groups > 2


def test_of_very_many_reasons_the_first_are_counted_one_by_one(
    how: Scoring, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "REASONS", 2)
    others = (f"{number},north,{word}" for number, word in enumerate("abca"))
    store().put(f"{prefix}a.csv", unlabelled(range(5), *others))
    texts = how.model_dump_json(), source(f"{prefix}a.csv").model_dump_json()
    found = ScoredObject.model_validate_json(worker.score_object(*texts))
    assert (found.rows, found.scored) == (9, 5)
    assert {r.reason: r.rows for r in found.refusals} == {
        "'a' is no number": 2,
        "'b' is no number": 1,
        worker.OTHER: 1,
    }
