"""Compare two registered versions of a line: what went in, what came out, and which is better.

Both are proven before anything of them is read. What is no longer in the store is said to be
unknown, with the reason; nothing is computed again but the answers of the two served models.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue

from models import catalog
from models.open import first
from models.signature import SIGNATURE_FILE, network_file
from models.version import Verified
from tasks import ingredients, isolated, provenance
from tasks.difference import Difference, Scores, Served, Side, StageDifference, changes, flat
from tasks.folders import StoredFolder
from tasks.jobs import ScoresJob
from tasks.recipe import DETERMINED
from tasks.recorded import CannotReplayError, recorded_output, recorded_version
from tasks.refs import Artifact, Dataset, Ref
from tasks.store import store
from tasks.verify import testified, verdict_of

R = TypeVar("R", bound=Ref)


class _Profile(BaseModel):
    profile: isolated.Profile
    threads: int


class _Settings(BaseModel):
    """What of a recipe's settings says how to score; other releases may have other fields."""

    training: _Profile
    confidence: float


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
        objects=ingredients.objects(a, b, unknown),
        rows=ingredients.rows(a, b, datasets) if datasets else None,
        code=ingredients.code(a, b, unknown),
        parameters=changes(flat(dict(a.recipe.settings)), flat(dict(b.recipe.settings))),
        environment=ingredients.environment(a, b),
        paired=_scores(a, b, datasets, unknown),
        files=changes(_files(a), _files(b)),
        served=(_served(a, artifacts[0]), _served(b, artifacts[1])) if artifacts else None,
        unknown=unknown,
    )


def _side(line: str, number: int, found: Verified) -> Side:
    folder = StoredFolder(line, found.recipe.digest)
    verdict = verdict_of(folder, found)
    details = found.provenance.run_details
    text = found.provenance.dependency(provenance.SOURCE)
    return Side(
        version=number,
        digest=found.recipe.digest,
        made_at=details.metadata.finished_on,
        commit=str(text.annotations.get("commit", "")),
        processor=details.modelmint_machine.processor,
        verdict=verdict.decision if verdict else "",
        reasons=verdict.reasons if verdict else (),
        served=verdict.metrics if verdict else {},
        replays=testified(folder, found).replays,
    )


def _outputs(
    kind: type[R], stage: str, a: Verified, b: Verified, unknown: dict[str, str], part: str
) -> tuple[R, R] | None:
    """What the stage gave for both, None when one of them is gone or this code cannot read it."""
    found = []
    for name, version in (("A", a), ("B", b)):
        record = version.recipe.stages.get(stage)
        if record is None:
            unknown[part] = f"{name}: it has no stage {stage}"
            return None
        try:
            found.append(recorded_output(kind, record))
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


def _scores(
    a: Verified, b: Verified, datasets: tuple[Dataset, Dataset] | None, unknown: dict[str, str]
) -> Any:
    """The paired comparison of the served models; None, with the reason, where there is none."""
    obstacle = unknown.get("rows", "") or ingredients.other_rows(a, b) or _other_target(a, b)
    if obstacle or datasets is None:
        unknown["paired"] = obstacle
        return None
    for found in (a, b):
        # An imported version has its files in its folder only.
        for name in (network_file(found.files), SIGNATURE_FILE):
            store().put_content(found.files[name])
    try:
        settings = _Settings.model_validate(b.recipe.settings)
    except ValueError as error:
        unknown["paired"] = f"B: {first(error, 'settings')}"
        return None
    job = ScoresJob(
        a=a.manifest, b=b.manifest, dataset_a=datasets[0], dataset_b=datasets[1],
        confidence=settings.confidence,
    )  # fmt: skip
    variables = isolated.environment(settings.training.profile, settings.training.threads)
    text = isolated.run("tasks.scores:measure", job.model_dump_json(), variables, lambda _: None)
    scores = Scores.model_validate_json(text)
    if scores.obstacle:
        unknown["paired"] = scores.obstacle
    return scores.paired


def _other_target(a: Verified, b: Verified) -> str:
    """Why errors of A and B are not of the same kind, if so."""
    before, after = (flat(found.recipe.settings.get("objective")) for found in (a, b))
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
        size=found.manifest.files[network_file(found.manifest.files)].size,
        cpu_microseconds=costs.get(artifact.chosen, {}),
    )
