"""Two signed versions side by side: every part that differs is named, and no other."""

import gzip
import io
import re
import tarfile
from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import helper, numpy_helper

from models.digests import IntegrityError, json_digest
from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE
from models.splits import ByHash
from models.version import Recipe, StageRecord
from tasks import source
from tasks.compare import compare
from tasks.difference import Change, Difference
from tasks.difference_page import page
from tasks.promotion import version_folder
from tasks.refs import Artifact, Verdict, Version
from tasks.register import register
from tasks.snapshot import raw_prefix
from tasks.store import store, table_key
from tests.tasks import samples
from tests.tasks.conftest import Trained, cleaned, keep, recipe_of, registered, snapshot


def version(
    name: str, trained: Trained, verdict: Verdict, seed: int, **changes: Any
) -> tuple[Version, Recipe]:
    """A version whose stages' outputs are still there; the snapshot is that of its data."""
    data = changes.pop("data", samples.TRIPS)
    seen = snapshot(data)
    recipe = recipe_of(name, trained, seed)
    settings = {**recipe.settings, "data": data.model_dump(mode="json")}
    recipe = recipe.model_copy(update={"settings": settings, "snapshot": seen.digest, **changes})
    keep(recipe.stages["clean"], trained.dataset)
    keep(recipe.stages["compress"], trained.artifact)
    found = register.bare(recipe, raw_prefix(data), seen, trained.artifact, trained.report, verdict)
    return found, recipe


def scaled(artifact: Artifact, scale: float) -> Artifact:
    """The same model, whose every answer is multiplied."""
    model = onnx.load_model_from_string(store().get_file(artifact.manifest, MODEL_FILE))
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == output.name else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "scale"))
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "scale"], [output.name]))
    files = {n: store().get_file(artifact.manifest, n) for n in (SIGNATURE_FILE, SAMPLE_FILE)}
    kept = store().put_folder({MODEL_FILE: model.SerializeToString(), **files})
    return artifact.model_copy(update={"manifest": kept, "digest": kept.digest})


def names(found: tuple[Change, ...]) -> dict[str, str]:
    return {change.name: change.kind for change in found}


def test_one_setting_is_all_that_differs(trained: Trained, verdict: Verdict) -> None:
    a, b = (version("seeds", trained, verdict, seed)[0] for seed in (100, 101))
    found = compare("seeds", a.number, b.number)
    assert found.parameters == (Change(name="training.seed", kind="changed", a=100, b=101),)
    assert not found.identical
    assert all(s.same_output and not s.same_key for s in found.stages)
    assert found.objects is not None
    assert (found.objects.a, found.objects.b, found.objects.listed) == (4, 4, ())
    assert found.rows is not None
    assert found.rows.a == found.rows.b == {**trained.dataset.rows, "quarantined": 0}
    assert (found.rows.added, found.rows.removed) == (0, 0)
    assert found.code.modules == found.code.files == found.code.others == found.files == ()
    assert set(found.environment.model_dump().values()) == {()}
    assert found.paired is not None
    assert found.paired.finding == "no difference is shown"
    assert found.paired.worse_by.value == 0
    assert (found.a.verdict, found.a.served) == (verdict.decision, verdict.metrics)
    assert found.unknown == {}
    assert Difference.model_validate_json(found.model_dump_json()) == found


def test_a_version_is_identical_to_itself(trained: Trained, verdict: Verdict) -> None:
    number = version("itself", trained, verdict, 102)[0].number
    found = compare("itself", number, number)
    assert found.identical
    assert found.parameters == ()
    assert all(stage.same_key for stage in found.stages)


def test_the_better_model_is_found_on_the_same_rows(trained: Trained, verdict: Verdict) -> None:
    a = version("models", trained, verdict, 103)[0].number
    other = trained._replace(artifact=scaled(trained.artifact, 1.5))
    b = version("models", other, verdict, 104)[0].number
    found = compare("models", a, b)
    assert found.paired is not None
    assert found.paired.finding == "B is worse"
    assert found.paired.worse_by.low > 0
    assert (found.paired.rows, found.paired.seen) == (trained.dataset.rows["test"], 0)
    values = {metric.name: metric for metric in found.paired.metrics}
    assert values["rmse"].a == pytest.approx(verdict.metrics["rmse"])
    assert values["rmse"].b > values["rmse"].a
    assert names(found.files) == {MODEL_FILE: "changed"}
    assert found.served is not None
    assert found.served[1].size > found.served[0].size
    assert found.served[0].cpu_microseconds.keys() == {"1", "32"}
    back = compare("models", b, a)
    assert back.paired is not None
    assert back.paired.finding == "B is better"


def test_rows_the_first_was_trained_on_are_left_out(trained: Trained, verdict: Verdict) -> None:
    number = version("splits", trained, verdict, 105)[0].number

    def against(test: float, seed: int) -> Difference:
        data = samples.TRIPS.model_copy(update={"split": ByHash(test=test, validation=0.2)})
        other = trained._replace(dataset=cleaned(data, samples.MINUTES))
        a = version("splits", other, verdict, seed, data=data)[0].number
        return compare("splits", a, number)

    found = against(0.2, 106)
    assert found.paired is not None
    assert found.paired.seen > 0
    assert found.paired.rows + found.paired.seen == trained.dataset.rows["test"]
    assert names(found.parameters).keys() == {"data.split.test", "training.seed"}
    few = against(0.1, 107)
    assert few.paired is None
    assert "A had seen all but" in few.unknown["paired"]


def test_objects_and_rows_that_came_and_went(trained: Trained, verdict: Verdict) -> None:
    data = samples.TRIPS.model_copy(update={"raw": "trips-later/"})
    store().put("raw/trips-later/reference/zones.csv", samples.ZONES_FILE)
    store().put("raw/trips-later/0.csv", samples.trips(range(100)))
    store().put("raw/trips-later/1.csv", samples.trips(range(100, 190)))
    hostile = "<script>alert(1)</script>.csv"
    store().put(f"raw/trips-later/{hostile}", samples.trips(range(300, 350), "1,nowhere,x,2"))
    a = version("data", trained, verdict, 108)[0].number
    later = trained._replace(dataset=cleaned(data, samples.MINUTES))
    b = version("data", later, verdict, 109, data=data)[0].number
    found = compare("data", a, b)
    assert found.objects is not None
    assert names(found.objects.listed) == {
        "1.csv": "changed", "2.csv": "removed", hostile: "added",
    }  # fmt: skip
    assert (found.objects.added, found.objects.removed, found.objects.changed) == (1, 1, 1)
    assert found.rows is not None
    assert (found.rows.added, found.rows.removed) == (50, 110)
    assert (found.rows.a["quarantined"], found.rows.b["quarantined"]) == (0, 1)
    text = page(found)
    assert hostile not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.csv" in text


def test_code_and_environment(
    trained: Trained, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("code", trained, 110)
    first = _made_with(recipe, json_digest("first"), "0.1", "3.10.1")
    a, _ = version("code", trained, verdict, 110, stages=first)
    second = _made_with(recipe, json_digest("second"), "0.2", "3.10.2")
    edited = _edited(source.archive(), "models/digests.py", "flows/produce.py")
    monkeypatch.setattr(source, "archive", lambda: edited)
    b, _ = version("code", trained, verdict, 110, stages=second)
    found = compare("code", a.number, b.number)
    assert names(found.code.modules) == {"models.digests": "changed"}
    [file] = found.code.files
    assert file.name == "models/digests.py"
    assert file.diff.splitlines()[:2] == ["--- a/models/digests.py", "+++ b/models/digests.py"]
    assert file.diff.splitlines()[-1] == "+EDITED = True"
    assert found.code.others == ("flows/produce.py",)
    assert found.environment.distributions == (
        Change(name="numpy", kind="changed", a="0.1", b="0.2"),
    )
    assert names(found.environment.platform) == {
        "python": "changed",
        **{f"numeric fingerprint of torch, {stage}": "changed" for stage in recipe.stages},
    }
    assert "<ins>+EDITED = True</ins>" in page(found)


def _made_with(recipe: Recipe, code: str, numpy: str, python: str) -> dict[str, StageRecord]:
    """The recipe's stages, as other code and another environment would have them."""
    stages = {}
    for name, record in recipe.stages.items():
        identity = record.identity.model_copy(
            update={
                "code": {"models.digests": code},
                "distributions": {"numpy": numpy},
                "python": python,
            }
        )
        key = json_digest(identity.model_dump(mode="json"))
        changed = {"identity": identity, "key": key, "fingerprint": {"torch": code}}
        stages[name] = record.model_copy(update=changed)
    return stages


def _edited(archive: bytes, *edited: str) -> bytes:
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as before,
        tarfile.open(fileobj=packed, mode="w") as after,
    ):
        for member in before:
            stream = before.extractfile(member)
            assert stream is not None
            content = stream.read() + (b"EDITED = True\n" if member.name in edited else b"")
            member.size = len(content)
            after.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue())


def test_what_is_gone_is_said_to_be_unknown(trained: Trained, verdict: Verdict) -> None:
    # No stage left a result: as after a clean-up, or where a version was imported.
    a, b = (registered("gone", trained, verdict, seed).number for seed in (111, 112))
    table = pl.DataFrame({"name": ["0.csv"], "size": [1], "sha256": ["0" * 64]})
    recipe = recipe_of("gone", trained, 113).model_copy(
        update={"snapshot": store().put_table(table)}
    )
    seen = snapshot(samples.TRIPS)
    lost = seen.model_copy(update={"digest": recipe.snapshot})
    c = register.bare(
        recipe, raw_prefix(samples.TRIPS), lost, trained.artifact, trained.report, verdict
    ).number
    store().delete(table_key(recipe.snapshot))
    found = compare("gone", a, b)
    assert found.rows is found.paired is found.served is None
    assert found.unknown.keys() == {"rows", "served", "paired"}
    assert all("no longer in the store" in reason for reason in found.unknown.values())
    assert found.objects is not None
    without = compare("gone", a, c)
    assert without.objects is None
    assert "the list of raw objects is gone" in without.unknown["objects"]
    assert without.unknown["objects"] in page(without)


def test_models_for_other_targets_are_not_scored(trained: Trained, verdict: Verdict) -> None:
    a, recipe = version("targets", trained, verdict, 114)
    objective: Any = recipe.settings["objective"]
    settings = {**recipe.settings, "objective": {**objective, "unit": "h"}}
    other = recipe_of("targets", trained, 115).model_copy(update={"settings": settings})
    keep(other.stages["clean"], trained.dataset)
    b = register.bare(
        other, raw_prefix(samples.TRIPS), snapshot(samples.TRIPS), trained.artifact,
        trained.report, verdict,
    )  # fmt: skip
    found = compare("targets", a.number, b.number)
    assert found.paired is None
    assert found.unknown["paired"].startswith("objective.unit is not the same")


def test_a_version_that_was_altered_is_refused(trained: Trained, verdict: Verdict) -> None:
    a, b = (registered("altered", trained, verdict, seed) for seed in (116, 117))
    store().put(version_folder("altered", b.digest) + MODEL_FILE, b"other")
    with pytest.raises(IntegrityError, match=MODEL_FILE):
        compare("altered", a.number, b.number)


class Page(HTMLParser):
    """What a page names and fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.headless = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
        self.headless += tag == "th" and "scope" not in dict(attrs)


def test_the_page_stands_alone(trained: Trained, verdict: Verdict) -> None:
    a = version("page", trained, verdict, 118)[0].number
    other = trained._replace(artifact=scaled(trained.artifact, 1.01))
    b = version("page", other, verdict, 119)[0].number
    found = compare("page", a, b)
    text = page(found)
    assert text == page(found)
    assert text.count("<svg ") == 3
    parsed = Page()
    parsed.feed(text)
    assert parsed.fetched == []
    assert parsed.headless == 0
    assert len(parsed.ids) == len(set(parsed.ids))
    named = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert {one or other for one, other in named} <= set(parsed.ids)
