"""Monitor champions: does what arrives still look like what they were trained on?

modelmint monitor flights
"""

import datetime
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from models import catalog
from tasks.captured import list_captured
from tasks.clean import clean
from tasks.drift import Drift, Search, drift
from tasks.fresh import clean_fresh
from tasks.promotion import promotions
from tasks.publish_drift import announce, show_drift, verdict
from tasks.recorded import (
    CannotReplayError,
    recorded_line,
    recorded_output,
    recorded_snapshot,
)
from tasks.refs import Dataset
from tasks.served import served
from tasks.snapshot import list_objects, raw_prefix, take_snapshot


class MonitorError(RuntimeError):
    """A line could not be monitored; the others were."""


@flow(name="monitor", flow_run_name="monitor {line}", persist_result=False)
def monitor(line: str, search: Search | None = None) -> Drift:
    """Compare fresh objects and captured inputs with the champion's training rows.

    Where they drifted the event `data.drifted` is emitted, once for the same evidence.

    Args:
        line: Name of the model line.
        search: How to look: rate of false alarms, margin, numbers of rows.
    """
    how = search or Search()
    champion, found = served(line)
    spec = recorded_line(found.recipe)
    prefix = raw_prefix(spec.data)
    try:
        dataset = recorded_output(Dataset, found.recipe.stages["clean"])
    except CannotReplayError:
        # A version that was imported: what it was trained on is cleaned here for the first time.
        dataset = clean(spec.data, spec.objective, prefix, recorded_snapshot(spec, found))
    snapshot = take_snapshot(prefix, list_objects(spec.data))
    fresh = clean_fresh(spec.data, spec.objective, prefix, snapshot, found.recipe.snapshot)
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=how.days)
    captured = list_captured(line, champion.digest, since)
    drifted = drift(how, champion, dataset, fresh, captured)
    announce(drifted, found)
    show_drift(drifted)
    return drifted


@flow(name="monitor-lines", persist_result=False)
def monitor_lines(
    lines: list[str] | None = None, search: Search | None = None
) -> list[dict[str, Any]]:
    """Monitor every line that has a champion; raises MonitorError, after all, for one that fails.

    Args:
        lines: Names of the model lines, instead of all there are.
        search: How to look: rate of false alarms, margin, numbers of rows.
    """
    rows: list[dict[str, Any]] = []
    known, broken = catalog.sound()
    failed = [] if lines else [str(error) for error in broken]
    for line in lines or known:
        if promotions(line).champion is None:
            continue
        try:
            outcome = verdict(monitor(line, search))
        except Exception as error:  # one line must never stop the others
            outcome = f"not monitored: {type(error).__name__}: {error}"
            failed.append(f"{line}: {outcome}")
        rows.append({"line": line, "verdict": outcome})
    create_table_artifact(key="drift", table=rows or [{"line": "no line has a champion"}])
    if failed:
        raise MonitorError("; ".join(failed))
    return rows
