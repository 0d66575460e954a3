"""The whole chain on a third line that is one file, against the real services."""

import importlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import mlflow.pyfunc
import numpy as np
import polars as pl
import pytest
from PIL import Image

from deployments.local.stack import SERVER
from flows.produce import Production, produce
from models import catalog
from models.signature import MODEL_FILE, PROGRAM_FILE
from models.spec import Budget, Gate, Optimizer, Training
from models.waves import write_wave
from tasks import progress, tracking, turn
from tasks.arrivals import taken
from tasks.clean import clean
from tasks.dataset import manifest, rows
from tasks.isolated import IsolatedError
from tasks.land import land
from tasks.lease import lease
from tasks.lineage import UnknownOriginError, lineage
from tasks.production import catch_up, promote_version, roll_back
from tasks.promotion import promotions
from tasks.served import served
from tasks.server import authorization
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
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
            run = pool.submit(produce, LINE)
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


def test_broken_data_fails_and_the_champion_goes_on(
    first: Production, services: dict[str, str]
) -> None:
    prefix = raw_prefix(catalog.find(LINE).data)
    kept = {item.key: store().get(item.key).content for item in store().list(prefix)}
    before = versions(LINE)
    for key in kept:
        store().put(key, b"patient,age\n1,2\n")
    with pytest.raises(ValueError, match="column .*progression.* is missing"):
        produce(LINE)
    assert versions(LINE) == before
    for key, content in kept.items():
        store().put(key, content)
    champion = promotions(LINE).champion
    assert champion is not None
    ready = httpx.get(f"{services[SERVER]}/v2/models/{LINE}", headers=authorization())
    assert ready.headers["modelmint-version"] == str(champion.number)
    assert first.version.number <= champion.number


def picture(width: int, height: int, grey: int = 90) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height), grey).save(content, "PNG")
    return content.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, payload in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return content.getvalue()


def clip(seconds: float) -> bytes:
    return write_wave(np.zeros(round(8000 * seconds), np.int16), 8000)


ONE_CLASS = {f"1/{number}.png": picture(28, 28, number) for number in range(80)}
PIXELS = {"1/a.png": picture(1, 1), "2/b.png": picture(20_000, 20_000)}
SOUNDS = {"a.wav": clip(0), "b.wav": clip(73)}
UNUSABLE: dict[str, tuple[str, dict[str, bytes], str]] = {
    "classes without samples": (
        "digits", {"a.tar": packed(ONE_CLASS)}, "no training row has the class 0, 2, 3",
    ),
    "one pixel and too many": (
        "digits", {"a.tar": packed(PIXELS)},
        r"1/a.png: 1 x 1 is under half of 28 x 28; 2/b.png: it is over 16,000,000 pixels",
    ),
    "texts under both labels": (
        "reviews", {"pos/a.txt": b"good\nbad\n", "neg/a.txt": b"bad\ngood\n"},
        "is there with another label too",
    ),
    "an empty and an endless clip": (
        "speech", {"a.tar": packed(SOUNDS), "core-sounds-en.txt": b"a: no\nb: too much\n"},
        r"a.wav: the clip is empty; b.wav: it lasts 73.0 s, over 20 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "objects", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_cannot_be_used_is_never_a_version(
    first: Production, name: str, objects: dict[str, bytes], reason: str
) -> None:
    assert first.version.number
    prefix = raw_prefix(catalog.find(name).data)
    for key, content in objects.items():
        store().put(prefix + key, content)
    with pytest.raises(ValueError, match=reason):
        produce(name)
    for key in objects:
        store().delete(prefix + key)
    assert versions(name) == []
    assert promotions(name).champion is None


def test_a_loss_that_is_no_number_is_never_a_version(first: Production) -> None:
    assert first.version.number
    before, serving = versions(LINE), promotions(LINE).champion
    wild = Optimizer(name="sgd", lr=10, momentum=0.99)
    with pytest.raises(IsolatedError, match=r"TrainingError: the loss is (nan|inf) at step"):
        produce(LINE, training=Training(epochs=200, optimizer=wild, clip=0.0))
    assert versions(LINE) == before
    assert promotions(LINE).champion == serving


def test_a_form_that_cannot_be_made_is_said_and_is_none_of_a_version(first: Production) -> None:
    assert first.version.number
    forms = ("student-tiny", "student-tiny+int8-static", "int8-static")
    budget = Budget(candidates=forms, quality_loss=0.5, slowdown=20)
    found = produce(LINE, budget=budget).artifact
    assert [c.name for c in found.candidates] == ["fp32", "int8-static"]
    assert set(found.failed) == set(forms[:2])
    assert "a student must be smaller" in found.failed["student-tiny"]
    assert found.chosen in {"fp32", "int8-static"}


def test_quarantine_names_object_row_and_reason(first: Production) -> None:
    line = catalog.find(LINE)
    prefix = raw_prefix(line.data)
    kept = store().get(prefix + "first.csv").content
    lines = kept.decode().splitlines()
    lines[17] = ",".join(["seventeen", *lines[17].split(",")[1:]])
    store().put(prefix + "first.csv", "\n".join(lines).encode())
    try:
        snapshot = take_snapshot.bare(prefix, list_objects(line.data))
        dataset = clean.bare(line.data, line.objective, prefix, snapshot)
    finally:
        store().put(prefix + "first.csv", kept)
    partition = next(p for p in manifest(dataset).partitions if p.name == "first.csv")
    table = store().get_table(partition.refused)
    assert table.rows() == [(16, "age", "'seventeen' is no number")]
    assert sum(first.dataset.rows.values()) == 221


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
    for unknown in ("asked-2", "0" * 64, "00000000"):
        with pytest.raises(UnknownOriginError):
            lineage(unknown)


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
