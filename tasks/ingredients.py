"""What went into two versions of a line: raw objects, rows, code, libraries, platform."""

import difflib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from models import catalog
from models.version import Verified
from tasks import provenance, source
from tasks.dataset import manifest
from tasks.difference import Code, Environment, FileChange, Objects, Rows, changes, flat
from tasks.refs import Dataset
from tasks.store import MissingError, store

# A snapshot may hold a million objects; all of them are counted.
LISTED_OBJECTS = 1000


def objects(a: Verified, b: Verified, unknown: dict[str, str]) -> Objects | None:
    """The raw objects of both; None, with the reason in `unknown`, where their list is gone."""
    try:
        before, after = (store().get_table(found.recipe.snapshot) for found in (a, b))
    except MissingError as error:
        unknown["objects"] = f"the list of raw objects is gone: {error}"
        return None
    contents = (dict(t.select("name", "sha256").iter_rows()) for t in (before, after))
    found = changes(*contents)
    kinds = [change.kind for change in found]
    return Objects(
        a=before.height,
        b=after.height,
        bytes_a=int(before["size"].sum()),
        bytes_b=int(after["size"].sum()),
        added=kinds.count("added"),
        removed=kinds.count("removed"),
        changed=kinds.count("changed"),
        listed=found[:LISTED_OBJECTS],
    )


def rows(a: Verified, b: Verified, datasets: tuple[Dataset, Dataset]) -> Rows:
    """The cleaned rows of both, matched by their identity where both are identified alike."""
    counts = [
        {**d.rows, "quarantined": sum(refusal.rows for refusal in d.refused)} for d in datasets
    ]
    added = removed = None
    if not other_rows(a, b):
        before, after = map(_identities, datasets)
        added = len(np.setdiff1d(after, before, assume_unique=True))
        removed = len(np.setdiff1d(before, after, assume_unique=True))
    return Rows(
        a={str(name): count for name, count in counts[0].items()},
        b={str(name): count for name, count in counts[1].items()},
        added=added,
        removed=removed,
    )


def _identities(dataset: Dataset) -> NDArray[np.uint64]:
    """Of all rows of the dataset, in no order that matters."""
    found = manifest(dataset)
    parts = []
    for partition in found.partitions:
        identities = np.frombuffer(store().get_content(partition.identities), "<u8")
        parts.append(np.delete(identities, list(found.excluded.get(partition.name, ()))))
    return np.concatenate(parts)


def other_rows(a: Verified, b: Verified) -> str:
    """Why rows of A and B cannot be matched, if so."""
    before, after = (flat(found.recipe.settings.get("data")) for found in (a, b))
    for name in ("type", "identity"):
        if before.get(name) != after.get(name):
            return f"data.{name} is not the same, so rows cannot be matched"
    return ""


def code(a: Verified, b: Verified, unknown: dict[str, str]) -> Code:
    """The modules whose syntax trees differ, and the text of their files."""
    modules = changes(_union(a, "code"), _union(b, "code"))
    wanted = {path for change in modules for path in _paths(change.name)}
    try:
        before, after = (_texts(provenance.text_of_code(found.provenance)) for found in (a, b))
    except MissingError as error:
        unknown["code"] = f"the recorded text of the code is gone: {error}"
        return Code(modules=modules, files=(), others=())
    differing = [change.name for change in changes(before, after)]
    files = [name for name in differing if name in wanted]
    return Code(
        modules=modules,
        files=tuple(_diff(name, before.get(name, ""), after.get(name, "")) for name in files),
        others=tuple(name for name in differing if name not in wanted),
    )


def _texts(archive: bytes) -> dict[str, JsonValue]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source.extract(archive, root)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {p.relative_to(root).as_posix(): p.read_text(errors="replace") for p in paths}


def _paths(module: str) -> tuple[str, str]:
    """Where a module, or the function `module:name`, stands in the recorded text."""
    path = module.partition(":")[0].replace(".", "/")
    path = path.replace(f"{catalog.PACKAGE}/", f"{source.LINES}/", 1)
    return f"{path}.py", f"{path}/__init__.py"


def _diff(name: str, before: Any, after: Any) -> FileChange:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
    )
    return FileChange(name=name, diff="\n".join(lines))


def environment(a: Verified, b: Verified) -> Environment:
    """Libraries, platform and numeric fingerprints."""
    before, after = _union(a, "distributions"), _union(b, "distributions")
    counting = {*before, *after}
    others = (
        {n: v for n, v in found.provenance.lock().items() if n not in counting} for found in (a, b)
    )
    return Environment(
        distributions=changes(before, after),
        others=changes(*others),
        platform=changes(_platform(a), _platform(b)),
    )


def _union(found: Verified, field: str) -> dict[str, JsonValue]:
    """A field of the identities of all stages; where they disagree, each with its stage."""
    values: dict[str, dict[str, str]] = {}
    for stage, record in found.recipe.stages.items():
        for name, value in getattr(record.identity, field).items():
            values.setdefault(name, {})[stage] = value
    return {name: _agreed(by_stage) for name, by_stage in values.items()}


def _agreed(by_stage: Mapping[str, str]) -> JsonValue:
    distinct = set(by_stage.values())
    return distinct.pop() if len(distinct) == 1 else dict(by_stage)


def _platform(found: Verified) -> dict[str, JsonValue]:
    stages = found.recipe.stages
    seen: dict[str, JsonValue] = {
        name: _agreed({stage: getattr(r.identity, name) for stage, r in stages.items()})
        for name in ("python", "libc", "machine")
    }
    seen["processor"] = found.provenance.run_details.modelmint_machine.processor
    for stage, record in stages.items():
        for library, digest in record.fingerprint.items():
            seen[f"numeric fingerprint of {library}, {stage}"] = digest
    return seen
