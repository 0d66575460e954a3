"""Inputs the model server kept a sample of: encoded rows, a file for some of them at a time.

captured/<line>/<version digest>/<milliseconds since 1970>-<rows>-<random>.safetensors
"""

import datetime
import re
from collections.abc import Iterator

import numpy as np
import polars as pl
from safetensors import SafetensorError

from models import samples
from models.data import Tensors
from models.digests import Digest, IntegrityError
from models.padding import joined
from models.signature import Signature
from tasks.refs import Ref
from tasks.store import store, table_key

NAME = re.compile(r"^(\d{1,16})-(\d{1,9})-[0-9a-f]+\.safetensors$")


class Captured(Ref):
    """Captured inputs of one version; `digest` is that of the table of their files."""

    rows: int


def list_captured(line: str, version: Digest, since: datetime.datetime) -> Captured:
    """What was captured of a version since that moment; nothing where capturing is off."""
    prefix = f"captured/{line}/{version}/"
    first = int(since.timestamp() * 1000)
    found = []
    for item in store().list(prefix):
        named = NAME.match(item.key.removeprefix(prefix))
        if named and int(named[1]) >= first:
            found.append((item.key, item.etag, int(named[2])))
    schema = {"key": pl.String, "etag": pl.String, "rows": pl.Int64}
    table = pl.DataFrame(found, schema=schema, orient="row").sort("key")
    digest = store().put_table(table)
    return Captured(digest=digest, stored=(table_key(digest),), rows=int(table["rows"].sum()))


def tensors(captured: Captured, signature: Signature, most: int) -> Tensors:
    """About `most` of the rows, the same every time; raises IntegrityError for a file that is none.

    A file that was deleted meanwhile is missed; MissingError is raised.
    """
    specs = signature.features.inputs
    parts = list(_parts(captured, signature, most / max(1, captured.rows)))
    return {spec.name: joined([part[spec.name] for part in parts]) for spec in specs}


def _parts(captured: Captured, signature: Signature, share: float) -> Iterator[Tensors]:
    random = np.random.default_rng(0)
    for key, etag in store().get_table(captured.digest).select("key", "etag").iter_rows():
        content = store().get(key, etag=etag).content
        try:
            part = samples.load(content, signature.features.inputs)
            for spec in signature.features.inputs:
                spec.check(part[spec.name])
        except (SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{store().uri(key)} holds no captured inputs: {error}") from None
        chosen = random.random(len(part[signature.features.inputs[0].name])) < share
        yield {spec.name: part[spec.name][chosen] for spec in signature.features.inputs}
