"""Objects that are scored, and what was written for them."""

import io

import orjson
import polars as pl

from models.digests import bytes_digest
from tasks.score import Scored
from tasks.scoring import ScoredObject, Source
from tasks.store import store
from tests.tasks import samples

LINE = "scored-trips"


def unlabelled(numbers: range, *others: str) -> bytes:
    """Trips of which nobody knows yet how long they took."""
    lines = [samples.trip(number).rpartition(",")[0] for number in numbers]
    return "\n".join(["trip,zone,km", *lines, *others, ""]).encode()


def objects(found: Scored) -> dict[str, ScoredObject]:
    manifest = orjson.loads(store().get(found.stored[0]).content)
    listed = [ScoredObject.model_validate(one) for one in manifest["objects"]]
    return {one.key: one for one in listed}


def read(one: ScoredObject) -> pl.DataFrame:
    content = store().get(str(one.output)).content
    assert bytes_digest(content) == one.blake3
    return pl.read_parquet(io.BytesIO(content))


def source(key: str) -> Source:
    [listed] = store().list(key)
    return Source(key=key, etag=listed.etag)
