"""On a Dask worker: one raw object read, cleaned, answered and written, piece by piece."""

import hashlib
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from blake3 import blake3
from numpy.typing import NDArray

from models import catalog
from models.data import REFUSED, RefusedObject, Tensors
from models.digests import Digest
from models.padding import computed
from tasks.clean import WHOLE_OBJECT, checked
from tasks.refs import Refusal
from tasks.scoring import ScoredObject, Scoring, Source
from tasks.snapshot import raw_prefix
from tasks.store import MissingError, store

PIECE = 16 << 20
"""Bytes of an object that are read at a time: what is larger than memory is scored in pieces."""
BATCH = 32
"""Rows the network computes at a time: their activations stay in the processor's cache."""

REASONS, OTHER = 1000, "other reasons: see the rows"
"""Reasons that are counted one by one: a value in each of many bad rows makes as many."""


class _Prepared:
    """A version with its tables, ready to score the objects of one run."""

    def __init__(self, text: str) -> None:
        catalog.modules()
        self.how = Scoring.model_validate_json(text)
        self.signature = self.how.served.signature()
        self.session = self.how.served.session()
        data, objective = self.how.data, self.signature.objective
        self.references = {
            name: data.reference(name, store().get(one.key, etag=one.etag).content)
            for name, one in self.how.references.items()
        }
        self.checks = [check for check in data.checks() if check.field != objective.target]
        self.answers = objective.table(
            np.zeros([max(1, length) for length in objective.output.shape], np.float32)
        ).clear()
        taken = {"row", "refused_field", "refused_reason", *data.identity}
        if clash := taken & set(self.answers.columns):
            raise ValueError(f"column {', '.join(sorted(clash))} is in the answers too: rename it")

    def rows(self, name: str, payload: bytes) -> pl.DataFrame:
        """Every record of a raw object, in order; raises RefusedObject."""
        data, target = self.how.data, self.signature.objective.target
        parsed = data.parse_unlabelled(name, payload, self.references, target)
        kept, refused = checked(parsed.rows, parsed.refused, self.checks)
        output = predict(self.session, self.signature.features.encode(kept))
        finite = np.isfinite(output).reshape(len(output), -1).all(axis=1)
        answers = self.signature.objective.table(output) if len(output) else self.answers
        scored = kept.select("row", *data.identity).hstack(answers).filter(finite)
        refused = pl.concat([refused, _not_finite(kept.filter(~finite))])
        reasons = refused.select("row", refused_field="field", refused_reason="reason")
        identified = parsed.rows.select("row", *data.identity)
        unanswered = reasons.join(identified, "row", how="left")
        found = pl.concat([scored, unanswered], how="diagonal").sort("row")
        return found.with_columns(pl.col("row").cast(pl.Int64))


_prepared = lru_cache(maxsize=2)(_Prepared)


def score_object(text: str, source_text: str) -> str:
    """Score one raw object; the counts as JSON, empty when it is no longer what was listed."""
    ready, source = _prepared(text), Source.model_validate_json(source_text)
    how = ready.how
    name = source.key.removeprefix(raw_prefix(how.data))
    place = how.place(source)
    with tempfile.TemporaryDirectory(prefix="modelmint-") as folder:
        raw, table = Path(folder) / "raw", Path(folder) / "rows.parquet"
        try:
            if not name.endswith(how.data.suffixes):
                raise RefusedObject(f"{name} does not end in {' or '.join(how.data.suffixes)}")
            store().fetch(source.key, raw, source.etag)
            rows, reasons = _write(ready, name, raw, table)
        except MissingError:
            return ""
        except RefusedObject as error:
            refusal = Refusal(field=WHOLE_OBJECT, reason=f"{name}: {error}", rows=0)
            record = _record(source, None, None, 0, (refusal,))
        else:
            output = f"{place}.parquet"
            if not store().put_new_file(output, table):
                # Somebody was there before, maybe with other bytes: those are the output.
                [there] = store().list(output)
                store().fetch(output, table, there.etag)
                rows, reasons = _counted(table)
            refusals = tuple(
                Refusal(field=field, reason=reason, rows=count)
                for (field, reason), count in sorted(reasons.items())
            )
            record = _record(source, output, _digest(table), rows, refusals)
    told = f"{place}.json"
    if store().put_new(told, record.model_dump_json().encode()):
        return record.model_dump_json()
    return store().get(told).content.decode()


def _write(
    ready: _Prepared, name: str, raw: Path, table: Path
) -> tuple[int, Counter[tuple[str, str]]]:
    """Write the object's rows to a file piece by piece; their number, and that of each reason."""
    import pyarrow.parquet as pq

    how, rows = ready.how, 0
    reasons: Counter[tuple[str, str]] = Counter()
    about = {
        "modelmint.line": how.served.line,
        "modelmint.version": str(how.served.number),
        "modelmint.digest": how.served.digest,
    }
    writer: Any = None
    try:
        for piece in how.data.pieces(name, raw, PIECE):
            found = ready.rows(name, piece.payload).with_columns(pl.col("row") + piece.first)
            rows += found.height
            _add(reasons, found)
            arrow = found.to_arrow(compat_level=pl.CompatLevel.oldest())
            if writer is None:
                schema = arrow.schema.with_metadata(about)
                # A number, or what tells a row from every other, hardly comes twice.
                repeated = [
                    column.name
                    for column in found.iter_columns()
                    if column.dtype == pl.String and column.name not in how.data.identity
                ]
                writer = pq.ParquetWriter(
                    table, schema, compression="zstd", use_dictionary=repeated
                )
            writer.write_table(arrow.cast(writer.schema))
            # Or they would be in memory beside the next piece while that is read.
            del piece, found, arrow
    finally:
        if writer is not None:
            writer.close()
    return rows, reasons


def _digest(table: Path) -> Digest:
    # Read, not mapped: mapped pages count as memory of this process, all of the file's at its end.
    with table.open("rb") as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]


def _counted(table: Path) -> tuple[int, Counter[tuple[str, str]]]:
    """The rows of a file that was written before, and those of each reason."""
    import pyarrow.parquet as pq

    reasons: Counter[tuple[str, str]] = Counter()
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(columns=["refused_field", "refused_reason"]):
            _add(reasons, pl.DataFrame(pl.from_arrow(batch)))
        return file.metadata.num_rows, reasons


def _add(reasons: Counter[tuple[str, str]], rows: pl.DataFrame) -> None:
    refused = rows.filter(pl.col("refused_field").is_not_null())
    groups = refused.group_by("refused_field", "refused_reason", maintain_order=True).len()
    for field, reason, number in groups.iter_rows():
        told = (field, reason) in reasons or len(reasons) < REASONS
        reasons[field, reason if told else OTHER] += number


def predict(session: Any, inputs: Tensors) -> NDArray[Any]:
    """The first output for all rows, [n, ...]."""
    if not len(next(iter(inputs.values()))):
        return np.zeros((0, 1), np.float32)
    return computed(lambda rows: session.run(None, rows)[0], inputs, BATCH)


def _not_finite(rows: pl.DataFrame) -> pl.DataFrame:
    reason = "the model gives no finite answer"
    return rows.select("row", field=pl.lit("record"), reason=pl.lit(reason)).cast(REFUSED)  # type: ignore[arg-type]


def _record(
    source: Source, output: str | None, digest: Digest | None, rows: int,
    refusals: tuple[Refusal, ...],
) -> ScoredObject:  # fmt: skip
    return ScoredObject(
        key=source.key,
        etag=source.etag,
        output=output,
        blake3=digest,
        rows=rows,
        scored=rows - sum(refusal.rows for refusal in refusals),
        refusals=refusals,
    )
