"""Compare two registered versions of a line: what went in, what came out, and which is better.

Both are proven before anything of them is read. What is no longer in the store is said to be
unknown, with the reason; nothing is computed again but the answers of the two served models.
"""

import difflib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from models import catalog
from models.signature import MODEL_FILE, SIGNATURE_FILE
from models.version import Verified
from tasks import isolated, provenance, source
from tasks.dataset import manifest
from tasks.difference import (
    Code,
    Difference,
    Environment,
    FileChange,
    Objects,
    Rows,
    Scores,
    Served,
    Side,
    StageDifference,
    changes,
    flat,
)
from tasks.folders import StoredFolder
from tasks.jobs import ScoresJob
from tasks.recipe import DETERMINED
from tasks.recorded import CannotReplayError, recorded_output, recorded_version
from tasks.refs import Artifact, Dataset, Ref
from tasks.store import MissingError, store
from tasks.verify import testified, verdict_of

R = TypeVar("R", bound=Ref)
# A snapshot may hold a million objects; all of them are counted.
LISTED_OBJECTS = 1000


def compare(line: str, number_a: int, number_b: int) -> Difference:
    """Version B against version A; raises IntegrityError when one does not verify."""
    a, b = recorded_version(line, number_a), recorded_version(line, number_b)
    catalog.modules()
    unknown: dict[str, str] = {}
    datasets = _outputs(Dataset, "clean", a, b, unknown, "rows")
    artifacts = _outputs(Artifact, "compress", a, b, unknown, "served")
    return Difference(
        line=line,
        a=_side(line, number_a, a),
        b=_side(line, number_b, b),
        identical=a.recipe.digest == b.recipe.digest,
        stages=_stages(a, b),
        objects=_objects(a, b, unknown),
        rows=_rows(a, b, datasets) if datasets else None,
        code=_code(a, b, unknown),
        parameters=changes(flat(dict(a.recipe.settings)), flat(dict(b.recipe.settings))),
        environment=_environment(a, b),
        paired=_scores(a, b, datasets, unknown),
        files=changes(_files(a), _files(b)),
        served=(_served(a, artifacts[0]), _served(b, artifacts[1])) if artifacts else None,
        unknown=unknown,
    )


def _side(line: str, number: int, found: Verified) -> Side:
    folder = StoredFolder(line, found.recipe.digest)
    verdict = verdict_of(folder, found) or {}
    details = found.statement.predicate["runDetails"]
    text = provenance.dependency(found.statement, provenance.SOURCE)
    return Side(
        version=number,
        digest=found.recipe.digest,
        made_at=details["metadata"]["finishedOn"],
        commit=str(text.annotations.get("commit", "")),
        processor=details["modelmint_machine"]["processor"],
        verdict=verdict.get("decision", ""),
        reasons=tuple(verdict.get("reasons", ())),
        served=verdict.get("metrics", {}),
        replays=testified(folder, found).replays,
    )


def _outputs(
    kind: type[R], stage: str, a: Verified, b: Verified, unknown: dict[str, str], part: str
) -> tuple[R, R] | None:
    """What the stage gave for both, None when one of them is gone or this code cannot read it."""
    found = []
    for name, version in (("A", a), ("B", b)):
        try:
            found.append(recorded_output(kind, version.recipe.stages[stage]))
        except (CannotReplayError, ValueError) as error:
            unknown[part] = f"{name}: {str(error).partition(chr(10))[0]}"
            return None
    return found[0], found[1]


def _stages(a: Verified, b: Verified) -> tuple[StageDifference, ...]:
    before, after = a.recipe.stages, b.recipe.stages
    return tuple(
        StageDifference(
            name=name,
            same_key=before[name].key == after[name].key,
            same_output=before[name].digest == after[name].digest,
            a=before[name].digest,
            b=after[name].digest,
        )
        for name in DETERMINED
        if name in before and name in after
    )


def _objects(a: Verified, b: Verified, unknown: dict[str, str]) -> Objects | None:
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


def _rows(a: Verified, b: Verified, datasets: tuple[Dataset, Dataset]) -> Rows:
    counts = [
        {**d.rows, "quarantined": sum(refusal.rows for refusal in d.refused)} for d in datasets
    ]
    added = removed = None
    if not _other_rows(a, b):
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


def _other_rows(a: Verified, b: Verified) -> str:
    """Why rows of A and B cannot be matched, if so."""
    before, after = (flat(found.recipe.settings["data"]) for found in (a, b))
    for name in ("type", "identity"):
        if before.get(name) != after.get(name):
            return f"data.{name} is not the same, so rows cannot be matched"
    return ""


def _code(a: Verified, b: Verified, unknown: dict[str, str]) -> Code:
    modules = changes(_union(a, "code"), _union(b, "code"))
    wanted = {path for change in modules for path in _paths(change.name)}
    try:
        before, after = (_texts(provenance.text_of_code(found.statement)) for found in (a, b))
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


def _environment(a: Verified, b: Verified) -> Environment:
    before, after = _union(a, "distributions"), _union(b, "distributions")
    counting = {*before, *after}
    others = (
        {n: v for n, v in provenance.lock(found.statement).items() if n not in counting}
        for found in (a, b)
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
    seen["processor"] = found.statement.predicate["runDetails"]["modelmint_machine"]["processor"]
    for stage, record in stages.items():
        for library, digest in record.fingerprint.items():
            seen[f"numeric fingerprint of {library}, {stage}"] = digest
    return seen


def _scores(
    a: Verified, b: Verified, datasets: tuple[Dataset, Dataset] | None, unknown: dict[str, str]
) -> Any:
    """The paired comparison of the served models; None, with the reason, where there is none."""
    obstacle = unknown.get("rows", "") or _other_rows(a, b) or _other_target(a, b)
    if obstacle or datasets is None:
        unknown["paired"] = obstacle
        return None
    for found in (a, b):
        # An imported version has its files in its folder only.
        for name in (MODEL_FILE, SIGNATURE_FILE):
            store().put_content(found.files[name])
    settings = b.recipe.settings
    training: Any = settings["training"]
    job = ScoresJob.model_validate(
        {
            "a": a.manifest,
            "b": b.manifest,
            "dataset_a": datasets[0],
            "dataset_b": datasets[1],
            "confidence": settings["confidence"],
        }
    )
    variables = isolated.environment(training["profile"], training["threads"])
    text = isolated.run("tasks.scores:measure", job.model_dump_json(), variables, lambda _: None)
    scores = Scores.model_validate_json(text)
    if scores.obstacle:
        unknown["paired"] = scores.obstacle
    return scores.paired


def _other_target(a: Verified, b: Verified) -> str:
    """Why errors of A and B are not of the same kind, if so."""
    before, after = (flat(found.recipe.settings["objective"]) for found in (a, b))
    for name in ("type", "target", "unit"):
        if before.get(name) != after.get(name):
            return f"objective.{name} is not the same, so errors cannot be compared"
    return ""


def _files(found: Verified) -> dict[str, JsonValue]:
    files: Iterable[tuple[str, Any]] = found.manifest.files.items()
    return {name: f"{file.size:,} bytes, {file.blake3}" for name, file in files}


def _served(found: Verified, artifact: Artifact) -> Served:
    costs: Any = artifact.observed.get("cpu_microseconds") or {}
    return Served(
        form=artifact.chosen,
        size=found.manifest.files[MODEL_FILE].size,
        cpu_microseconds=costs.get(artifact.chosen, {}),
    )
