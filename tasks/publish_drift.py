"""Say that drift was looked for: a signed report in the bucket, artifacts, and an event.

    drift/<line>/<version digest>/<report digest>.json   an in-toto test result, DSSE, ed25519

The event `data.drifted` of the resource `modelmint.line.<line>` is emitted once: its id is a
function of the version and what it was compared with, and what was reported is not emitted again.
"""

import base64
import uuid
from datetime import UTC, datetime
from typing import Any

from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from models.signature import VERSION_FILE
from models.version import Verified
from tasks import provenance
from tasks.drift import Drift
from tasks.store import store

EVENT = "data.drifted"
# Of this project's events alone, so that no other's id is ever the same.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:modelmint:event")


def resource(line: str) -> str:
    """The Prefect resource of a line."""
    return f"modelmint.line.{line}"


def event_id(found: Drift) -> uuid.UUID:
    """The event's id: the same for the same version and evidence."""
    return uuid.uuid5(NAMESPACE, "/".join([EVENT, found.version_digest, *found.evidence]))


def report_key(found: Drift) -> str:
    """Where the signed report is."""
    return f"drift/{found.line}/{found.version_digest}/{found.digest[:32]}.json"


def announce(found: Drift, version: Verified) -> bool:
    """Emit the event if something drifted, keep the signed report; False when it was kept before.

    In that order, and not before Prefect has the event: whoever dies in between emits the same one
    again, and none is lost. Raises httpx.HTTPError when Prefect does not take it.
    """
    key = report_key(found)
    if store().exists(key):
        return False
    if found.drifted:
        event = _event(found, store().uri(key))
        with get_client(sync_client=True) as client:
            # Not Prefect's emit_event: it sends later, in a thread that may never come to it.
            client.request("POST", "/events", json=[event]).raise_for_status()
    tests = {f"{f.sample}: {f.name} ({f.test})": not f.drifted for f in found.findings}
    detail = found.model_dump(mode="json", exclude={"stored", "observed", "fingerprint"})
    content = provenance.monitored(found.version_digest, version.files[VERSION_FILE], tests, detail)
    return store().put_new(key, content)


def _event(found: Drift, report: str) -> dict[str, Any]:
    run = str(flow_run.get_id() or "")
    role = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}
    return {
        "id": str(event_id(found)),
        "event": EVENT,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {
            "prefect.resource.id": resource(found.line),
            "prefect.resource.name": found.line,
            "modelmint.version": str(found.version),
        },
        "related": [role] if run else [],
        "payload": {
            "line": found.line,
            "version": found.version,
            "digest": found.version_digest,
            "drifted": list(found.drifted),
            "report": report,
        },
    }


def show_drift(found: Drift) -> None:
    """The findings as a table, the surest ones as plots."""
    create_table_artifact(
        key=f"{found.line}-drift",
        table=findings_table(found) or [{"sample": "nothing to compare yet"}],
        description=verdict(found),
    )
    plots: Any = found.observed.get("plots")
    for title, digest in (plots or {}).items():
        picture = base64.b64encode(store().get_content(str(digest))).decode()
        create_image_artifact(
            image_url=f"data:image/png;base64,{picture}",
            key=f"{found.line}-{title}-plot",
            description=f"{found.line}: training rows and what came since",
        )


def verdict(found: Drift) -> str:
    """One sentence: what drifted, on how many rows."""
    rows = ", ".join(f"{count:,} {name}" for name, count in found.rows.items())
    what = f"drifted: {', '.join(found.drifted)}" if found.drifted else "no drift is shown"
    if not found.findings:
        what = "too few rows to judge"
    return f"{found.line} version {found.version}: {what} (rows: {rows})"


def findings_table(found: Drift) -> list[dict[str, Any]]:
    """A row for every test, the surest first."""
    return [
        {
            "sample": f.sample,
            "what": f.name,
            "test": f.test,
            "difference": round(f.difference, 4),
            "p, adjusted": float(f"{f.adjusted:.3g}"),
            "drift": "yes" if f.drifted else "",
        }
        for f in found.findings
    ]
