"""The monitor flow against the real services: report, artifacts, and one event for one finding."""

import time
from typing import Any

import httpx
import polars as pl
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.monitor import monitor, monitor_lines
from flows.produce import Production
from models import catalog
from models.attestation import TEST_RESULT, verified
from models.trust import trust
from tasks.drift import Drift, Search
from tasks.publish_drift import EVENT, announce, event_id, report_key, verdict
from tasks.served import served
from tasks.snapshot import raw_prefix
from tasks.store import store

LINE = "diabetes"
HOW = Search(minimum_rows=100)


def patients(moved: float) -> bytes:
    """New patients like the known ones, but for their body mass index."""
    line = catalog.find(LINE)
    assert line.example is not None
    [(_, content)] = line.example.load("second")
    table = pl.read_csv(content).with_columns(pl.col("patient") + 10_000, pl.col("bmi") + moved)
    return table.write_csv().encode()


def events(prefect: str) -> list[dict[str, Any]]:
    """What the Prefect server knows of drift."""
    wanted = {"filter": {"event": {"name": [EVENT]}}, "limit": 50}
    found = httpx.post(f"{prefect}/events/filter", json=wanted).raise_for_status()
    return list(found.json()["events"])


@pytest.fixture
def drifted(first: Production) -> Any:
    """What the flow finds in objects that drifted; they are gone afterwards."""
    key = raw_prefix(catalog.find(LINE).data) + "drifted.csv"
    store().put(key, patients(0.1))
    try:
        yield monitor(LINE, HOW)
    finally:
        store().delete(key)


def test_drift_is_reported_signed_and_told_once(
    drifted: Drift, services: dict[str, str], prefect_service: str
) -> None:
    assert "bmi" in drifted.drifted
    assert not {"age", "bp", "sex"} & set(drifted.drifted)
    assert "drifted: bmi" in verdict(drifted)
    envelope = store().get(report_key(drifted)).content
    statement = verified(envelope, trust(), predicate=TEST_RESULT)
    assert statement.predicate["result"] == "WARNED"
    assert "fresh: bmi (Kolmogorov-Smirnov)" in statement.predicate["warnedTests"]
    # Without Prefect nothing is on record, so that the next search tells it.
    other = drifted.model_copy(update={"digest": "0" * 64})
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        with pytest.raises(httpx.ConnectError):
            announce(other, served(LINE)[1])
        assert not store().exists(report_key(other))
    again = monitor(LINE, HOW)
    assert again.digest == drifted.digest
    # Events travel on their own; nothing says when the server has one.
    for _ in range(120):
        if events(prefect_service):
            break
        time.sleep(0.5)
    [event] = events(prefect_service)
    assert event["id"] == str(event_id(drifted))
    assert event["resource"]["prefect.resource.id"] == f"modelmint.line.{LINE}"
    assert event["payload"]["drifted"] == list(drifted.drifted)
    assert event["payload"]["report"] == store().uri(report_key(drifted))
    artifacts = httpx.post(
        f"{prefect_service}/artifacts/filter",
        json={"artifacts": {"key": {"any_": [f"{LINE}-drift", f"{LINE}-drift-plot"]}}},
    ).json()
    assert {a["type"] for a in artifacts} == {"table", "image"}


def test_without_anything_new_there_is_nothing_to_judge(first: Production) -> None:
    assert first.version.number
    [row] = monitor_lines([LINE], HOW)
    assert row["line"] == LINE
    assert "too few rows to judge" in row["verdict"]
