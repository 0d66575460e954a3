"""The whole chain on a third line that is one file, against the real services."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Event
from typing import Any

import httpx
import mlflow.pyfunc
import polars as pl
import pytest

from deployments.local.stack import SERVER
from flows.produce import Production, produce
from models import catalog
from models.signature import MODEL_FILE, PROGRAM_FILE
from models.spec import Budget, Gate, Training
from tasks import progress, tracking, turn
from tasks.arrivals import taken
from tasks.dataset import rows
from tasks.land import land
from tasks.lease import lease
from tasks.lineage import UnknownOriginError, lineage
from tasks.production import catch_up, promote_version, roll_back
from tasks.promotion import promotions
from tasks.served import served
from tasks.server import authorization
from tasks.snapshot import raw_prefix
from tasks.stage import StageRun
from tasks.store import store
from tasks.versions import versions
from tests.tasks.samples import look

LINE = "diabetes"


def asked(line: str, table: pl.DataFrame, found: Production, server: str) -> httpx.Response:
    """The answer to the first of the rows, as a person gives it."""
    payload, media_type = found.dataset.signature.features.write(table)
    headers = {"content-type": media_type, **authorization()}
    return httpx.post(f"{server}/v1/lines/{line}/predict", content=payload, headers=headers)


def by_name(found: Production) -> dict[str, StageRun]:
    return {stage.name: stage for stage in found.stages}


def test_first_version_is_promoted_and_beats_the_mean(first: Production) -> None:
    assert first.version.number == 1
    assert first.verdict.decision == "promote"
    assert first.endpoint.serving == 1
    assert first.verdict.metrics["rmse"] < first.report.baselines["mean"]["rmse"]
    interval = first.report.metrics["rmse"]
    assert interval.low < interval.value < interval.high
    assert not any(stage.cached for stage in first.stages)
    assert sum(first.dataset.rows.values()) == 221
    assert list(by_name(first)) == [
        "snapshot", "clean", "train", "evaluate", "compress", "gate", "register", "deploy",
    ]  # fmt: skip


def test_people_see_how_far_it_is_what_came_of_it_and_where(
    first: Production, services: dict[str, str], prefect_service: str
) -> None:
    kinds = {
        "progress": "progress",
        "quarantine": "table",
        "quality": "table",
        "compression": "table",
        "verdict": "markdown",
        "compression-plot": "image",
        "endpoint": "markdown",
    }
    keys = [f"{LINE}-{name}" for name in kinds]
    asked = {"artifacts": {"key": {"any_": keys}}, "sort": "CREATED_DESC"}
    found = httpx.post(f"{prefect_service}/artifacts/filter", json=asked).json()
    told = {artifact["key"]: artifact for artifact in reversed(found)}
    assert {key: told[key]["type"] for key in told} == dict(zip(keys, kinds.values(), strict=True))
    assert told[f"{LINE}-progress"]["data"] == 100.0
    assert "promote" in told[f"{LINE}-verdict"]["data"]
    assert f"({services[SERVER]}/)" in told[f"{LINE}-endpoint"]["data"]
    assert first.version.number == 1


def test_served_model_answers_a_person(first: Production, services: dict[str, str]) -> None:
    table = rows(first.dataset, "test").head(1)
    answer = asked(LINE, table, first, services[SERVER])
    assert answer.status_code == 200
    assert answer.headers["modelmint-digest"] == first.version.digest
    [prediction] = answer.json()["predictions"]
    assert 0 < prediction["progression"] < 400


def test_nothing_new_recomputes_nothing_and_gives_the_same_version(first: Production) -> None:
    again = produce(LINE)
    assert all(stage.cached for stage in again.stages)
    assert again.version == first.version.model_copy(update={"observed": {"unchanged": True}})
    assert again.verdict.decision == "promote"
    assert len(versions(LINE)) == 1


def test_a_run_waits_for_its_turn_and_takes_what_landed_meanwhile(
    first: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.version.number
    prefix = raw_prefix(catalog.find(LINE).data)
    late, waiting, before = f"{prefix}late.txt", Event(), taken(LINE)

    def heard(event: progress.Event) -> None:
        if event.stage == "turn" and event.detail.get("waiting_for") == "another run":
            waiting.set()

    def enough(*_: object) -> None:
        raise RuntimeError("this far")

    monkeypatch.setattr(importlib.import_module("flows.produce"), "take_snapshot", enough)
    with progress.listening(heard), ThreadPoolExecutor(1) as pool:
        with lease(turn.key(LINE), "another run"):
            # With Prefect's settings: in a thread without them it starts a server of its own.
            run = pool.submit(copy_context().run, produce, LINE)
            assert waiting.wait(120)
            store().put(late, b"late")
            assert taken(LINE) == before
        with pytest.raises(RuntimeError, match="this far"):
            run.result(120)
    assert taken(LINE) == look(prefix) != before
    store().delete(late)


def test_a_new_object_costs_only_itself_and_meets_the_champion(first: Production) -> None:
    land(catalog.find(LINE), "second")
    second = produce(LINE)
    assert by_name(second)["snapshot"].observed == {"hashed": 1, "reused": 1}
    assert by_name(second)["clean"].observed == {"cleaned": 1, "reused": 1}
    assert sum(second.dataset.rows.values()) == 442
    assert second.version.number == 2
    comparison = second.verdict.comparison
    assert comparison is not None
    assert comparison.champion == first.version.digest
    # Its rows were found again; the split is by hash, so it had seen none of the test.
    assert (comparison.seen, comparison.unknown) == (0, "")
    # Test rows keep their split: those of the first version are still among them.
    before = set(rows(first.dataset, "test").get_column("identity"))
    assert before <= set(rows(second.dataset, "test").get_column("identity"))
    assert second.endpoint.serving == (2 if second.verdict.decision == "promote" else 1)


def test_a_version_below_the_floor_is_registered_and_not_served(first: Production) -> None:
    serving = promotions(LINE).champion
    refused = produce(LINE, gate=Gate(floors={"rmse": 1.0}))
    assert refused.verdict.decision == "refuse"
    assert "floor" in refused.verdict.reasons[0]
    assert promotions(LINE).champion == serving
    assert refused.endpoint.serving == (serving.number if serving else 0)
    assert first.version.number in {v["version"] for v in versions(LINE)}


def test_a_worse_version_is_held(first: Production) -> None:
    serving = promotions(LINE).champion
    held = produce(
        LINE,
        training=Training(epochs=1, seed=3),
        gate=Gate(floors={"rmse": 1000}, margin=0.01),
        budget=Budget(quality_loss=0.5, slowdown=20),
    )
    assert held.verdict.decision == "hold"
    assert held.verdict.comparison is not None
    assert held.verdict.comparison.worse_by.low > 0.01
    assert held.version.number > first.version.number
    assert promotions(LINE).champion == serving
    assert held.endpoint.serving == (serving.number if serving else 0)


@pytest.mark.slow
def test_one_training_compressed_in_two_ways_is_two_versions(first: Production) -> None:
    again = produce(LINE)
    other = produce(LINE, budget=Budget(exclude=(again.artifact.chosen,)))
    stages = by_name(other)
    assert stages["train"].cached
    assert other.artifact.chosen != again.artifact.chosen
    assert other.version.number > first.version.number
    shown = {v["version"]: v["metrics"]["rmse"] for v in versions(LINE)}
    assert shown[other.version.number] == pytest.approx(other.verdict.metrics["rmse"])
    assert shown[again.version.number] == pytest.approx(again.verdict.metrics["rmse"])


def test_a_lost_result_is_computed_again(first: Production) -> None:
    again = produce(LINE)
    for key in again.artifact.stored:
        store().delete(key)
    mended = produce(LINE)
    stages = by_name(mended)
    assert stages["train"].cached
    assert not stages["compress"].cached
    assert mended.version.digest == again.version.digest
    assert mended.version.number > first.version.number


def test_training_rows_never_hold_a_test_row(first: Production) -> None:
    seen = [set(rows(first.dataset, s).get_column("identity")) for s in ("train", "validation")]
    tested = set(rows(first.dataset, "test").get_column("identity"))
    assert tested
    assert not tested & (seen[0] | seen[1])


def test_a_form_that_cannot_be_made_is_said_and_is_none_of_a_version(first: Production) -> None:
    assert first.version.number
    forms = ("student-tiny", "student-tiny+int8-static", "int8-static")
    budget = Budget(candidates=forms, quality_loss=0.5, slowdown=20)
    found = produce(LINE, budget=budget).artifact
    assert [c.name for c in found.candidates] == ["fp32", "int8-static"]
    assert set(found.failed) == set(forms[:2])
    assert "a student must be smaller" in found.failed["student-tiny"]
    assert found.chosen in {"fp32", "int8-static"}


def test_a_version_that_was_rolled_back_waits_for_people(
    first: Production, services: dict[str, str]
) -> None:
    chosen = produce(LINE).artifact.chosen
    changed: dict[str, Any] = {
        "budget": Budget(exclude=(chosen,), quality_loss=0.5, slowdown=20),
        "gate": Gate(floors={"rmse": 1000}, margin=0.9),
    }
    before = promotions(LINE).champion
    assert before is not None
    bad = produce(LINE, **changed)
    assert (bad.verdict.decision, bad.endpoint.serving) == ("promote", bad.version.number)
    found = roll_back(LINE, None, "customers complain")
    assert (found["version"], found["replaced"]) == (before.number, bad.version.number)
    catch_up(LINE)
    champion = promotions(LINE).champion
    assert champion is not None
    assert (champion.digest, champion.kind, champion.by) == (before.digest, "rollback", found["by"])
    alias = tracking.client().get_model_version_by_alias(LINE, "champion")
    assert int(alias.version) == before.number

    again = produce(LINE, **changed)
    assert again.version.digest == bad.version.digest
    assert again.verdict.decision == "hold"
    assert again.verdict.reasons[0].startswith("rolled back on ")
    assert again.verdict.reasons[0].endswith(
        "customers complain; promote it by hand, or land new data"
    )
    assert again.endpoint.serving == before.number
    shown = {v["version"]: v["production"] for v in versions(LINE)}
    assert "customers complain" in shown[bad.version.number]
    assert shown[before.number].startswith("in production: brought back on ")

    assert promote_version(LINE, bad.version.number, "")["replaced"] == before.number
    assert produce(LINE, **changed).verdict.decision == "promote"
    assert first.version.number in shown


def test_an_answer_leads_back_to_run_code_data_and_signer(
    first: Production, services: dict[str, str]
) -> None:
    payload, media_type = first.dataset.signature.features.write(
        rows(first.dataset, "test").head(1)
    )
    path = f"/v1/lines/{LINE}/versions/{first.version.number}/predict"
    headers = {"content-type": media_type, "x-request-id": "asked-1", **authorization()}
    answer = httpx.post(f"{services[SERVER]}{path}", content=payload, headers=headers)
    assert answer.status_code == 200
    found = lineage("asked-1")
    assert found["request"]["status"] == 200
    assert (found["line"], found["version"]) == (LINE, first.version.number)
    assert found["digest"] == answer.headers["modelmint-digest"] == first.version.digest
    assert len(found["signed_by"]) == 1
    assert found["run"]["mlflow"] == first.version.run
    assert [one["name"] for one in found["data"]["objects_named"]] == ["first.csv"]
    assert found["stages"]["train"] == by_name(first)["train"].digest
    assert found["settings"]["training"]["epochs"]
    same = lineage(first.version.digest[:12])
    assert {**same, "request": found["request"]} == found
    assert lineage("cmpl-asked-1") == found  # as a completion calls itself
    journal, store = "no request '{}' is in the journal", "a digest that starts with {}"
    for unknown, said in (
        ("asked-2", [journal]),
        ("cmpl-asked-2", [journal]),
        ("0" * 64, [store]),
        ("0" * 32, [journal, store]),
    ):
        with pytest.raises(UnknownOriginError) as refused:
            lineage(unknown)
        assert all(one.format(unknown) in str(refused.value) for one in said)


@pytest.mark.slow
def test_a_network_onnx_lacks_is_served_as_a_program_of_torch(
    first: Production, services: dict[str, str]
) -> None:
    assert first.version.number
    line = catalog.find("wines")
    land(line, "all")
    found = produce("wines")
    assert found.verdict.decision == "promote"
    assert PROGRAM_FILE in found.artifact.manifest.files
    assert MODEL_FILE not in found.artifact.manifest.files
    assert set(found.artifact.failed) == {"onnx", *line.budget.candidates}
    assert "_linalg_eigh" in found.artifact.failed["onnx"]
    assert "cannot quantize" in found.artifact.failed["int8-dynamic"]
    table = rows(found.dataset, "test").head(1)
    answer = asked("wines", table, found, services[SERVER])
    assert answer.headers["modelmint-digest"] == found.version.digest
    signature, session = found.dataset.signature, served("wines")[0].session()
    [expected] = signature.objective.answer(session.run(None, signature.features.encode(table))[0])
    assert answer.json()["predictions"] == [expected]
    model = mlflow.pyfunc.load_model(f"models:/wines/{found.version.number}")
    [output] = model.predict(signature.features.encode(table)).values()
    assert line.objective.answer(output) == [expected]
