"""Production changed by hand: promote a registered version, roll back, and what follows from it."""

from contextlib import suppress
from typing import Any

from models.digests import Digest
from models.promotions import Promotions
from tasks.promotion import mirror, promote, promotions, version_folder
from tasks.refs import Verdict
from tasks.register import digest_of
from tasks.server import DeploymentError, connected, load, post, serving, settle
from tasks.store import store


def promote_version(line: str, number: int, why: str) -> dict[str, Any]:
    """Put a registered version into production, whatever the gate said of it.

    The server proves and loads it first, so that nothing has changed when that fails; then the
    record is written, then the server moves. Asking again mends what was interrupted. Raises
    DeploymentError, PromotionError and UnknownVersionError.
    """
    digest = digest_of(line, number)
    with connected() as client:
        settle(client, line)
        before = serving(client, line)
        by = load(client, line, number, digest, store().uri(version_folder(line, digest)))
        entry = promote(line, number, digest, by, why)
        wanted = {"version": str(number), "recorded": entry.id}
        post(client, f"/v1/lines/{line}/promote", wanted)
    return {"line": line, "version": number, "digest": digest, "replaced": before, "by": by}


def roll_back(line: str, number: int | None, why: str) -> dict[str, Any]:
    """Put an earlier version back into production; the model server alone must answer.

    Without a number that is the version before the present one. Raises DeploymentError.
    """
    wanted = {"reason": why} | ({} if number is None else {"version": str(number)})
    with connected() as client:
        found = post(client, f"/v1/lines/{line}/rollback", wanted)
    return {**found, "version": int(found["version"]), "replaced": int(found["replaced"])}


def try_out(line: str, kind: str, number: int, **how: Any) -> dict[str, Any]:
    """Try a registered version as the line's `canary` or `shadow`; raises DeploymentError."""
    digest = digest_of(line, number)
    with connected() as client:
        load(client, line, number, digest, store().uri(version_folder(line, digest)))
        wanted = {"version": str(number), **{n: v for n, v in how.items() if v is not None}}
        found: dict[str, Any] = post(client, f"/v1/lines/{line}/{kind}", wanted)
    return found


def catch_up(line: str) -> None:
    """Have the record and MLflow's alias say what is in production; raises what they raise."""
    with connected() as client:
        settle(client, line)
    mirror(line)


def reconsidered(line: str, digest: Digest, verdict: Verdict) -> Verdict:
    """The verdict, but a version that was rolled back is held: only people bring it back.

    The gate would say again what it said the first time, since nothing it looks at has changed.
    """
    if verdict.decision != "promote":
        return verdict
    # What the server still keeps is looked for again by deploy, which needs it to answer.
    with suppress(DeploymentError), connected() as client:
        settle(client, line)
    back = promotions(line).rolled_back(digest)
    if back is None:
        return verdict
    reason = f"rolled back {back.told}; promote it by hand, or land new data"
    return verdict.model_copy(update={"decision": "hold", "reasons": (reason, *verdict.reasons)})


def told(record: Promotions, digest: Digest) -> str:
    """What the record tells of a version, for people: since when, or how it ended."""
    champion = record.champion
    if champion is not None and champion.digest == digest:
        verb = "promoted" if champion.kind == "promote" else "brought back"
        return f"in production: {verb} {champion.told}"
    if back := record.rolled_back(digest):
        return f"rolled back {back.told}"
    ended = [entry for entry in record.history if entry.replaced == digest]
    return f"replaced {ended[-1].told}" if ended else ""
