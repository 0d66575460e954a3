"""What a replay needs and what it says: can this version be made again here, and is it the same?"""

import datetime
import platform
from collections.abc import Iterable
from typing import Any, Literal

import polars as pl

from models import catalog
from models.digests import Digest
from models.open import Frozen
from models.spec import Line
from tasks import tracking
from tasks.recipe import DETERMINED
from tasks.refs import Snapshot
from tasks.snapshot import SCHEMA, raw_prefix
from tasks.stage import StageRun
from tasks.store import store, table_key


class CannotReplayError(RuntimeError):
    """The version cannot be made again here; the message says what is missing or different."""


class Compared(Frozen):
    """One stage of a replay beside the record."""

    stage: str
    recorded: Digest
    replayed: Digest
    identical: bool


class Replay(Frozen):
    """Whether a version came out the same, stage by stage."""

    line: str
    version: int
    verdict: Literal["identical", "differs"]
    first_difference: str | None
    stages: tuple[Compared, ...]


def recorded_line(name: str, body: dict[str, Any]) -> Line:
    """The line as the version's recipe has it; raises CannotReplayError."""
    catalog.modules()
    settings = {k: v for k, v in body["settings"].items() if k != "confidence"}
    gate = {"confidence": body["settings"]["confidence"]}
    try:
        return Line.model_validate({"name": name, "title": name, "gate": gate, **settings})
    except ValueError as error:
        raise CannotReplayError(
            f"changed code: the recipe does not fit this code: {error}"
        ) from None


def recorded_snapshot(line: Line, digest: Digest) -> Snapshot:
    """The recorded snapshot, found in the bucket as it is now; raises CannotReplayError."""
    prefix = raw_prefix(line.data)
    wanted = store().get_table(digest)
    there = pl.DataFrame(
        [(item.key.removeprefix(prefix), item.size, item.etag) for item in store().list(prefix)],
        schema={"name": pl.String, "size": pl.Int64, "etag": pl.String},
        orient="row",
    )
    located = wanted.join(there, on=["name", "size"], how="left", maintain_order="left")
    lost = located.filter(pl.col("etag").is_null()).get_column("name").to_list()
    if lost:
        raise CannotReplayError(
            f"missing raw object: {store().uri(prefix + lost[0])} is gone or has another size"
            f" ({len(lost)} of {wanted.height} objects)"
        )
    table = located.with_columns(version=pl.lit("")).select(list(SCHEMA))
    address = store().put_table(table)
    return Snapshot(
        digest=digest,
        stored=(table_key(digest), table_key(address)),
        objects=table.height,
        size=int(table["size"].sum()),
        located=address,
    )


def check_identity(recorded: dict[str, Any], stage: str, now: dict[str, Any]) -> None:
    """Raise CannotReplayError unless code, distributions and Python are the recorded ones."""
    before = recorded["stages"][stage]["identity"]
    for part, reason in (("distributions", "changed distribution"), ("code", "changed code")):
        names = sorted(
            name
            for name in {*before[part], *now[part]}
            if before[part].get(name) != now[part].get(name)
        )
        if names:
            shown = ", ".join(
                f"{n} {before[part].get(n, 'absent')[:12]} -> {now[part].get(n, 'absent')[:12]}"
                for n in names[:4]
            )
            raise CannotReplayError(f"{reason} of stage {stage}: {shown} ({len(names)} in all)")
    if before["python"] != now["python"]:
        raise CannotReplayError(f"changed Python: {before['python']} -> {now['python']}")


def compared(line: str, version: int, body: dict[str, Any], runs: Iterable[StageRun]) -> Replay:
    """The verdict over all stages that ran."""
    stages = tuple(
        Compared(
            stage=run.name,
            recorded=body["stages"][run.name]["digest"],
            replayed=run.digest,
            identical=body["stages"][run.name]["digest"] == run.digest,
        )
        for run in runs
        if run.name in DETERMINED
    )
    first = next((s.stage for s in stages if not s.identical), None)
    verdict: Literal["identical", "differs"] = "differs" if first else "identical"
    return Replay(
        line=line, version=version, verdict=verdict, first_difference=first, stages=stages
    )


def write_back(replay: Replay) -> None:
    """Have the registered version say when and where it was replayed, and with what result."""
    tags = {
        "modelmint.replayed": replay.verdict,
        "modelmint.replayed.at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelmint.replayed.on": f"{platform.system()} {platform.machine()}",
    }
    for name, value in tags.items():
        tracking.client().set_model_version_tag(replay.line, str(replay.version), name, value)
