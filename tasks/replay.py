"""What a replay needs and what it says: can this version be made again here, and is it the same?"""

import datetime
from collections.abc import Iterable
from typing import Any, Literal

from models.attestation import described
from models.digests import Digest, IntegrityError
from models.open import Frozen, first
from models.signature import PROVENANCE_FILE, SIGNATURE_FILE, VERSION_FILE, Signature
from models.spec import Line
from models.version import Recipe, StageRecord, Verified
from tasks import provenance, tracking
from tasks.folders import REPLAYS
from tasks.isolated import isolated
from tasks.jobs import FingerprintJob, Fingerprints
from tasks.promotion import version_folder
from tasks.recipe import DETERMINED
from tasks.recorded import CannotReplayError, ChangedCodeError, ChangedEnvironmentError
from tasks.stage import StageRun
from tasks.store import store

# What a stage takes from others; `evaluate` gives evidence only.
NEEDS = {
    "clean": (),
    "train": ("clean",),
    "evaluate": ("clean", "train"),
    "compress": ("clean", "train"),
}
assert tuple(NEEDS) == DETERMINED
ATTEMPTED_TAG = "modelmint.replay.attempted.at"
UNKNOWN_CAUSE = "all it is a function of is as recorded: the stage does not repeat itself"


class Compared(Frozen):
    """One stage of a replay beside the record."""

    stage: str
    recorded: Digest
    replayed: Digest
    identical: bool
    changed: str = ""
    """What the stage is a function of and is not as recorded; empty when all of it is."""


class Replay(Frozen):
    """Whether a version came out the same, stage by stage."""

    line: str
    version: int
    digest: Digest
    verdict: Literal["identical", "differs"]
    first_difference: str | None
    """The first stage that differs."""
    first_cause: str | None = None
    """Why it may: the numeric platform, the libraries or the code; None when nothing differs."""
    stages: tuple[Compared, ...]
    code: Literal["this checkout", "the recorded code"] = "this checkout"


class DiffersError(RuntimeError):
    """A version was made again and is another; `replay` says stage by stage how."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(
            f"{replay.line} version {replay.version} differs, first in stage"
            f" {replay.first_difference}: {replay.first_cause}"
        )
        self.replay = replay


def needed(stage: str | None, from_raw: bool) -> tuple[str, ...]:
    """The stages to compute, in order: all, one from its recorded inputs, or all up to one."""
    if stage is None:
        return DETERMINED
    if stage not in NEEDS:
        raise ValueError(f"no stage {stage!r} is replayed; there are {', '.join(NEEDS)}")
    return (*NEEDS[stage], stage) if from_raw else (stage,)


def changed(stage: str, record: StageRecord, now: dict[str, Any]) -> CannotReplayError | None:
    """What the stage is a function of and is not as it was recorded; None when all of it is."""
    before = record.identity.model_dump(mode="json")
    for name in ("python", "libc", "machine"):
        if before[name] != now[name]:
            return ChangedEnvironmentError(f"changed {name}: {before[name]} -> {now[name]}")
    kinds: tuple[tuple[str, str, type[CannotReplayError]], ...] = (
        ("distributions", "changed distribution", ChangedEnvironmentError),
        ("code", "changed code", ChangedCodeError),
    )
    for part, reason, kind in kinds:
        names = sorted(
            name
            for name in {*before[part], *now[part]}
            if before[part].get(name) != now[part].get(name)
        )
        if part == "distributions" and before["code"] != now["code"]:
            # Other code stands on others; of those the recorded code has too, none may differ.
            names = [name for name in names if name in before[part] and name in now[part]]
        if names:
            shown = ", ".join(
                f"{n} {before[part].get(n, 'absent')[:12]} -> {now[part].get(n, 'absent')[:12]}"
                for n in names[:4]
            )
            return kind(f"{reason} of stage {stage}: {shown} ({len(names)} in all)")
    return None


def check_identity(recipe: Recipe, stage: str, now: dict[str, Any]) -> None:
    """Raise ChangedCodeError or ChangedEnvironmentError unless all is as it was recorded."""
    found = changed(stage, recipe.stages[stage], now)
    if found is not None:
        raise found


def other_numbers(
    stage: str, record: StageRecord, now: dict[str, Digest]
) -> ChangedEnvironmentError | None:
    """What says that libraries round otherwise than where the stage ran; None when they do not."""
    before = record.fingerprint
    names = sorted(name for name in before if before[name] != now.get(name))
    if not names:
        return None
    return ChangedEnvironmentError(
        f"different numeric platform: {', '.join(names)} give other bits here than where stage"
        f" {stage} ran"
    )


def check_numbers(line: Line, found: Verified, wanted: Iterable[str]) -> None:
    """Raise ChangedEnvironmentError when libraries round otherwise here than where it was made.

    Raises IntegrityError for a signature this release cannot read.
    """
    training = line.training
    try:
        signature = Signature.model_validate_json(found.files[SIGNATURE_FILE])
    except ValueError as error:
        raise IntegrityError(
            f"{SIGNATURE_FILE} is no signature this release knows: {first(error)}"
        ) from None
    here: dict[str, dict[str, Digest]] = {}
    for stage in wanted:
        record = found.recipe.stages[stage]
        trains = stage == "train" or (stage == "compress" and line.budget.trains)
        device = training.device if trains else "cpu"
        if record.fingerprint and device not in here:
            job = FingerprintJob(
                model=line.model, signature=signature, threads=training.threads, device=device
            )
            here[device] = isolated(
                "tasks.fingerprint:measure", job, Fingerprints, stage="fingerprint",
                profile=training.profile, threads=training.threads, gpu=device == "cuda",
            ).digests  # fmt: skip
        other = other_numbers(stage, record, here.get(device, {}))
        if other is not None:
            raise other


def compared(line: str, version: int, recipe: Recipe, runs: Iterable[StageRun]) -> Replay:
    """The verdict over all stages that ran."""
    stages = tuple(_compared(recipe, run) for run in runs if run.name in DETERMINED)
    different = next((stage for stage in stages if not stage.identical), None)
    return Replay(
        line=line,
        version=version,
        digest=recipe.digest,
        verdict="differs" if different else "identical",
        first_difference=different.stage if different else None,
        first_cause=(different.changed or UNKNOWN_CAUSE) if different else None,
        stages=stages,
    )


def _compared(recipe: Recipe, run: StageRun) -> Compared:
    record = recipe.stages[run.name]
    # Other bits are the nearer cause: other code need not give any.
    cause = other_numbers(run.name, record, run.fingerprint) or changed(
        run.name, record, run.identity
    )
    return Compared(
        stage=run.name,
        recorded=record.digest,
        replayed=run.digest,
        identical=record.digest == run.digest,
        changed=str(cause or ""),
    )


def note_attempt(line: str, version: int) -> None:
    """Have the version say that a replay of it was begun, whatever becomes of it."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    tracking.client().set_model_version_tag(line, str(version), ATTEMPTED_TAG, now)


def write_back(replay: Replay, found: Verified) -> None:
    """Have the version say, signed, when and where it was replayed, and with what result."""
    now = datetime.datetime.now(datetime.UTC)
    content = provenance.replayed(
        replay.digest,
        found.files[VERSION_FILE],
        {stage.stage: stage.identical for stage in replay.stages},
        {
            **replay.model_dump(mode="json"),
            "provenance": described(PROVENANCE_FILE, found.files[PROVENANCE_FILE]).digest,
        },
    )
    name = f"{REPLAYS}{now.strftime('%Y%m%dT%H%M%S.%fZ')}.json"
    store().put(version_folder(replay.line, replay.digest) + name, content)
    where = provenance.machine()
    tags = {
        "modelmint.replayed": replay.verdict,
        "modelmint.replayed.stages": " ".join(stage.stage for stage in replay.stages),
        "modelmint.replayed.at": now.isoformat(timespec="seconds"),
        "modelmint.replayed.on": f"{where['processor']}, {where['system']} {where['machine']}",
    }
    for tag, value in tags.items():
        tracking.client().set_model_version_tag(replay.line, str(replay.version), tag, value)


def forget(names: Iterable[Digest]) -> None:
    """Remove what the stages of a replay kept for themselves."""
    for name in names:
        store().delete(f"checkpoints/{name}")
        for prefix in ("partitions", "candidates"):
            for item in list(store().list(f"{prefix}/{name}/")):
                store().delete(item.key)
