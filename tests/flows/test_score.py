"""The score flow with the champion, against the real services."""

import io

import httpx
import orjson
import polars as pl

from flows.produce import Production
from flows.score import score
from models import catalog
from tasks.dataset import rows
from tasks.snapshot import raw_prefix
from tasks.store import store

LINE = "diabetes"


def test_the_champion_answers_what_is_below_a_prefix(
    first: Production, prefect_service: str
) -> None:
    raw = store().get(raw_prefix(catalog.find(LINE).data) + "first.csv").content
    store().put(
        "incoming/clinic/monday.csv", pl.read_csv(raw).drop("progression").write_csv().encode()
    )
    found = score(LINE, "incoming/clinic/", first.version.number)
    assert (found.objects, found.rows, found.scored) == (1, 221, 221)
    assert found.version_digest == first.version.digest
    manifest = orjson.loads(store().get(found.stored[0]).content)
    answers = pl.read_parquet(io.BytesIO(store().get(manifest["objects"][0]["output"]).content))
    # As well as on the test rows it was judged by.
    known = rows(first.dataset, "test").select("row", true="progression")
    judged = known.join(answers.with_columns(pl.col("row").cast(pl.UInt32)), "row")
    rmse = float(((judged["true"] - judged["progression"]) ** 2).mean()) ** 0.5  # type: ignore[arg-type]
    assert judged.height == first.dataset.rows["test"]
    assert abs(rmse - first.verdict.metrics["rmse"]) < 0.01
    artifacts = httpx.post(
        f"{prefect_service}/artifacts/filter",
        json={"artifacts": {"key": {"any_": [f"{LINE}-score", f"{LINE}-scored"]}}},
    ).json()
    assert {(a["type"], a["data"] if a["type"] == "progress" else "") for a in artifacts} == {
        ("progress", 100.0),
        ("table", ""),
    }
    again = score(LINE, "incoming/clinic/", first.version.number)
    assert again.digest == found.digest
    assert again.observed["unchanged"] is True
