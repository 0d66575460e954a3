"""The rows that came after a version was made: raw objects its snapshot did not hold, cleaned."""

from collections.abc import Iterator

import orjson
import polars as pl

from models.data import Data
from models.digests import Digest, canonical_json
from models.objectives import Objective
from tasks import cluster, progress
from tasks.clean import WHOLE_OBJECT, clean_object, cleaning_job
from tasks.dataset import Partition
from tasks.refs import Ref, Refusal, Snapshot
from tasks.snapshot import raw_objects
from tasks.stage import stage
from tasks.store import content_key, store


class Fresh(Ref):
    """Partitions of new raw objects; `digest` is that of their records."""

    objects: int
    rows: int
    refused: tuple[Refusal, ...]


@stage("fresh")
def clean_fresh(
    data: Data, objective: Objective, prefix: str, snapshot: Snapshot, known: Digest
) -> Fresh:
    """The objects of the snapshot whose content the snapshot of table `known` did not hold.

    They are cleaned as `clean` cleans them, and found again by it when a version is produced.
    """
    objects = list(raw_objects(snapshot))
    seen = set(store().get_table(known).get_column("sha256"))
    job = cleaning_job(data, objective, prefix, snapshot, objects).model_dump_json()
    taken = set(data.references.values())
    wanted = {
        item.sha256: item
        for item in reversed(objects)
        if item.sha256 not in seen and item.name not in taken and item.name.endswith(data.suffixes)
    }
    items = [(job, item.model_dump_json()) for item in wanted.values()]
    found: dict[int, Partition] = {}
    for done, (index, record) in enumerate(cluster.spread(clean_object, items) if items else (), 1):
        found[index] = Partition.model_validate_json(record)
        progress.tell("fresh", "progress", done=done, total=len(items), unit="objects")
    parts = sorted(found.values(), key=lambda p: p.name)
    digest = store().put_content(canonical_json([p.model_dump(mode="json") for p in parts]))
    return Fresh(
        digest=digest,
        stored=(content_key(digest), *(key for p in parts for key in p.stored)),
        objects=len(parts),
        rows=sum(sum(p.labels.values()) for p in parts),
        refused=tuple(refusal for p in parts for refusal in p.refusals),
    )


def tables(fresh: Fresh) -> Iterator[pl.DataFrame]:
    """The kept rows of every new object."""
    for record in orjson.loads(store().get_content(fresh.digest)):
        yield store().get_table(Partition.model_validate(record).rows)


def refused_rows(refusals: tuple[Refusal, ...]) -> int:
    """Rows refused for what they hold: a repeated one was good once, a whole object is no row."""
    return sum(
        refusal.rows
        for refusal in refusals
        if refusal.field != WHOLE_OBJECT and not refusal.reason.startswith("repeats")
    )
