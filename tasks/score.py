"""Score raw objects in batch: one future for each on Dask, one output for each, written once.

An object is read, cleaned and encoded as for training, its target left out, and answered by a
registered version. Every record ends as a row of the output with an answer, or with the reason it
was refused for.

    <output><object key>/<address>.parquet   the rows
    <output><object key>/<address>.json      their counts; written last: the object is done
    <output>manifests/<digest>.json          all objects of a run

The address is the digest of the object's key and ETag, the version digest and the ETags of the
reference tables. Both files are put on condition that they are not there, and repeat bit for bit on
a like machine, so a run that was killed, repeated or ran twice at once leaves one output.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from models.digests import Digest, bytes_digest, canonical_json
from tasks import cluster, progress
from tasks.refs import Listing, Ref, Refusal
from tasks.score_object import score_object
from tasks.scoring import ScoredObject, Scoring, Source
from tasks.snapshot import raw_prefix
from tasks.stage import stage
from tasks.store import store

SHOWN = 20
"""Reasons that a result names; the manifest and the outputs have all."""


class Scored(Ref):
    """All outputs of a run; `digest` is its manifest's."""

    line: str
    version: int
    version_digest: Digest
    manifest: str
    """s3:// address of the manifest."""
    objects: int
    rows: int
    scored: int
    refusals: tuple[Refusal, ...]
    missed: tuple[str, ...]
    """Keys of objects that were overwritten or deleted after they were listed: run again."""


@stage("score", cached=False)
def score(how: Scoring, prefix: str, listing: Listing) -> Scored:
    """The outputs of every listed object below the prefix; what has one is not scored again."""
    if how.output.startswith(prefix):
        raise ValueError(f"the output {how.output} is below {prefix}: it would be scored itself")
    listed = store().get_table(listing.digest)
    sources = [
        Source(key=prefix + name, etag=etag) for name, etag in listed.select("name", "etag").rows()
    ]
    references = {raw_prefix(how.data) + at for at in how.data.references.values()}
    sources = [source for source in sources if source.key not in references]
    known = dict(_known(how, sources))
    missing = [source for source in sources if source.key not in known]
    text = how.model_dump_json()
    items = ((text, source.model_dump_json()) for source in missing)
    missed: list[str] = []
    rows = 0
    for done, (index, record) in enumerate(
        cluster.spread(score_object, items) if missing else (), 1
    ):
        if record:
            scored = known[missing[index].key] = ScoredObject.model_validate_json(record)
            rows += scored.rows
        else:
            missed.append(missing[index].key)
        progress.tell("score", "progress", done=done, total=len(missing), unit="objects", rows=rows)
    return _manifest(how, prefix, [known[s.key] for s in sources if s.key in known], missed, rows)


def _known(how: Scoring, sources: Sequence[Source]) -> Iterator[tuple[str, ScoredObject]]:
    """The counts of objects that were scored before: one listing, and a read for each."""
    there = {item.key for item in store().list(how.output)}
    done = [s for s in sources if f"{how.place(s)}.json" in there]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda s: store().get(f"{how.place(s)}.json").content, done)
        for source, record in zip(done, found, strict=True):
            one = ScoredObject.model_validate_json(record)
            if one.output is None or one.output in there:
                yield source.key, one


def _manifest(
    how: Scoring, prefix: str, objects: Sequence[ScoredObject], missed: Sequence[str], fresh: int
) -> Scored:
    total = _total(objects)
    rows, scored = (sum(getattr(one, name) for one in objects) for name in ("rows", "scored"))
    content = canonical_json(
        {
            "kind": "modelmint.scored/1",
            "line": how.served.line,
            "version": how.served.number,
            "digest": how.served.digest,
            "prefix": store().uri(prefix),
            "references": {name: one.model_dump() for name, one in how.references.items()},
            "rows": rows,
            "scored": scored,
            "missed": sorted(missed),
            "objects": [one.model_dump(mode="json") for one in objects],
        }
    )
    digest = bytes_digest(content)
    key = f"{how.output}manifests/{digest[:32]}.json"
    store().put_new(key, content)
    return Scored(
        digest=digest,
        stored=(key,),
        observed={"unchanged": not (fresh or missed), "fresh_rows": fresh},
        line=how.served.line,
        version=how.served.number,
        version_digest=how.served.digest,
        manifest=store().uri(key),
        objects=len(objects),
        rows=rows,
        scored=scored,
        refusals=tuple(total[:SHOWN]),
        missed=tuple(sorted(missed)),
    )


def _total(objects: Iterable[ScoredObject]) -> list[Refusal]:
    counts: Counter[tuple[str, str]] = Counter()
    for refusal in (r for one in objects for r in one.refusals):
        counts[refusal.field, refusal.reason] += refusal.rows
    return [Refusal(field=f, reason=r, rows=rows) for (f, r), rows in counts.most_common()]
