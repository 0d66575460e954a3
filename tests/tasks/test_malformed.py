"""Versions that a trusted key signed and that are not as they must be: refused before use.

The signature of each verifies, so it is the content that is refused, naming file and field.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from models.attestation import (
    PAYLOAD_TYPE,
    PROVENANCE,
    TEST_RESULT,
    Resource,
    Statement,
    described,
)
from models.digests import IntegrityError, canonical_json, json_digest
from models.signature import (
    MANIFEST_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    VERDICT_FILE,
    VERSION_FILE,
)
from models.table_digest import table_digest
from models.trust import KEYS_SETTING, PublicKey
from models.version import Recipe
from tasks import signing
from tasks.export import SNAPSHOT_FILE, SNAPSHOT_SCHEMA, import_folder
from tasks.folders import LocalFolder
from tasks.recorded import ChangedCodeError, recorded_line
from tasks.replay import check_numbers
from tasks.verify import proven, verify
from tests.conftest import environment
from tests.forger import Change, Forger

GOLDEN = Path(__file__).parents[1] / "golden" / "current" / "diabetes"


class Watched(LocalFolder):
    """A folder that remembers what was read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names: list[str] = []

    def read(self, name: str, limit: int) -> bytes:
        self.names.append(name)
        return super().read(name, limit)


@pytest.fixture
def forger(tmp_path: Path) -> Iterator[Forger]:
    """The golden version, signed by this place's own key."""
    folder = shutil.copytree(GOLDEN, tmp_path / "version")
    with environment(**{KEYS_SETTING: str(tmp_path / "keys")}):
        signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
        made = Forger(folder, proven(LocalFolder(folder)))
        made.provenance(lambda _: None)
        assert verify(LocalFolder(folder)).digest == made.whole.recipe.digest
        yield made


def refused(forger: Forger, file: str, field: str) -> None:
    """It is refused by file and field; where the recipe is at fault, no artifact was opened."""
    watched = Watched(forger.folder)
    with pytest.raises(IntegrityError) as raised:
        verify(watched)
    said = str(raised.value)
    assert file in said
    assert field in said
    assert "\n" not in said
    if file != PROVENANCE_FILE:
        assert not {MODEL_FILE, SIGNATURE_FILE, SAMPLE_FILE} & set(watched.names)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.update(extra=1), "extra"),
        (lambda r: r.update(body=[]), "body"),
        (lambda r: r["body"].update(extra=1), "body.extra"),
        (lambda r: r["body"].pop("snapshot"), "body.snapshot"),
        (lambda r: r["body"].update(snapshot=7), "body.snapshot"),
        (lambda r: r["body"].update(snapshot="../" + "0" * 61), "body.snapshot"),
        (lambda r: r["body"].update(settings=[]), "body.settings"),
        (lambda r: r["body"].update(kind="modelmint.version/9"), "body.kind"),
        (lambda r: r["body"].update(line="../../other"), "body.line"),
        (lambda r: r["body"].update(line="other\n"), "body.line"),
        (lambda r: r["body"]["stages"].update(train={}), "body.stages.train.identity"),
        (lambda r: r["body"]["stages"]["train"].update(extra=1), "body.stages.train.extra"),
        (
            lambda r: r["body"]["stages"]["train"]["identity"].update(python=3),
            "body.stages.train.identity.python",
        ),
        (
            lambda r: r["body"]["stages"]["train"]["identity"].update(arguments={}),
            "the key of stage train is not its identity's digest",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(forger: Forger, change: Change, field: str) -> None:
    forger.recipe(change)
    refused(forger, VERSION_FILE, field)


@pytest.mark.parametrize("name", [VERSION_FILE, MANIFEST_FILE])
def test_a_field_that_stands_twice_is_refused(forger: Forger, name: str) -> None:
    """Readers differ in which of two they take."""
    content = (forger.folder / name).read_bytes()
    key = orjson.dumps(min(orjson.loads(content)))
    twice = b"{" + key + b":null," + content[1:]
    assert orjson.loads(twice) == orjson.loads(content)
    forger.file(name, twice)
    refused(forger, name, "stands twice")


def test_what_is_no_json_is_refused(forger: Forger) -> None:
    forger.file(VERSION_FILE, b"\x80\x04K\x01.")
    refused(forger, VERSION_FILE, "no JSON")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["files"].update({"../model.onnx": m["files"]["model.onnx"]}), "files"),
        (lambda m: m["files"].update({"/model.onnx": m["files"]["model.onnx"]}), "files"),
        (lambda m: m["files"].pop("model.onnx"), "model.onnx"),
        (lambda m: m["files"]["model.onnx"].update(size=-1), "files.model.onnx.size"),
        (lambda m: m["files"]["model.onnx"].update(size="large"), "files.model.onnx.size"),
        (lambda m: m["files"]["model.onnx"].update(blake3="0"), "files.model.onnx.blake3"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    forger: Forger, change: Change, field: str
) -> None:
    listed = orjson.loads((forger.folder / MANIFEST_FILE).read_bytes())
    change(listed)
    forger.artifact(canonical_json(listed), json_digest(listed))
    refused(forger, "manifest", field)


def subject(name: str) -> dict[str, Any]:
    return orjson.loads(described(name, b"").model_dump_json())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda s: s["subject"].append(subject("model.onnx")), "model.onnx stands for two files"),
        (lambda s: s["subject"].append(subject("../../outside")), "'../../outside'"),
        (lambda s: s["subject"].append(subject("/etc/hostname")), "'/etc/hostname'"),
        (lambda s: s["subject"].append(subject("replays/1.json")), "'replays/1.json'"),
        (lambda s: s["subject"].append(subject(".")), "'.'"),
        (lambda s: s["subject"].append(subject("")), "''"),
        (lambda s: s["subject"].append(subject("verdict.json")), "verdict.json stands for two"),
        (lambda s: s["predicate"].pop("buildDefinition"), "predicate.buildDefinition"),
        (
            lambda s: s["predicate"]["buildDefinition"].update(buildType="urn:other:1"),
            "predicate.buildDefinition.buildType",
        ),
        (
            lambda s: s["predicate"]["buildDefinition"]["internalParameters"].pop("located"),
            "predicate.buildDefinition.internalParameters.located",
        ),
        (
            lambda s: s["predicate"]["buildDefinition"].update(resolvedDependencies=[{"uri": 1}]),
            "predicate.buildDefinition.resolvedDependencies.0.uri",
        ),
        (
            lambda s: s["predicate"]["buildDefinition"]["internalParameters"]["recipe"].update(
                line="other"
            ),
            "its recipe is not the one of version.json",
        ),
        (
            lambda s: s["predicate"]["runDetails"]["modelmint_machine"].update(processor=None),
            "predicate.runDetails.modelmint_machine.processor",
        ),
    ],
)
def test_a_provenance_that_does_not_fit_is_refused(
    forger: Forger, change: Change, field: str
) -> None:
    forger.provenance(change)
    refused(forger, PROVENANCE_FILE, field)


@pytest.mark.parametrize("payload", [b"[]", b"{}", b"no JSON", b'{"_type": 1}'])
def test_a_payload_that_is_no_statement_is_refused(forger: Forger, payload: bytes) -> None:
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signing.signer())
    (forger.folder / PROVENANCE_FILE).write_bytes(canonical_json(envelope.to_dict()))
    refused(forger, PROVENANCE_FILE, "no in-toto statement")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda p: p.update(result="MAYBE"), "predicate.result"),
        (lambda p: p.pop("modelmint_detail"), "predicate.modelmint_detail"),
        (lambda p: p["modelmint_detail"].update(at=1), "predicate.modelmint_detail.at"),
        (
            lambda p: p["modelmint_detail"]["gate"].update(decision="maybe"),
            "predicate.modelmint_detail.gate.decision",
        ),
        (
            lambda p: p["modelmint_detail"]["gate"].update(metrics={"rmse": "low"}),
            "predicate.modelmint_detail.gate.metrics.rmse",
        ),
    ],
)
@pytest.mark.parametrize("name", [VERDICT_FILE, "replays/20260101T000000.000000Z.json"])
def test_a_test_result_that_does_not_fit_is_refused(
    forger: Forger, name: str, change: Change, field: str
) -> None:
    gate = {"decision": "promote", "reasons": [], "metrics": {}}
    detail = {"at": "2026-01-01", "machine": {"processor": "x"}, "gate": gate}
    predicate: dict[str, Any] = {"result": "PASSED", "modelmint_detail": detail}
    about = (described(VERSION_FILE, forger.whole.files[VERSION_FILE]),)
    (forger.folder / "replays").mkdir()
    forger.sign(Statement(subject=about, predicate_type=TEST_RESULT, predicate=predicate), name)
    verify(LocalFolder(forger.folder))
    change(predicate)
    forger.sign(Statement(subject=about, predicate_type=TEST_RESULT, predicate=predicate), name)
    with pytest.raises(IntegrityError) as raised:
        verify(LocalFolder(forger.folder))
    assert name in str(raised.value)
    assert field in str(raised.value)


def test_a_verdict_of_another_version_or_without_its_gate_is_refused(forger: Forger) -> None:
    detail = {"at": "2026-01-01", "machine": {"processor": "x"}}
    predicate: dict[str, Any] = {"result": "PASSED", "modelmint_detail": detail}
    for about, reason in (
        (described(VERSION_FILE, forger.whole.files[VERSION_FILE]), "gate is missing"),
        (described(VERSION_FILE, b"other"), "altered, swapped"),
        (Resource(name=VERSION_FILE), "names no digest"),
        (described("other.json", b""), "does not name it"),
    ):
        said = Statement(subject=(about,), predicate_type=TEST_RESULT, predicate=predicate)
        forger.sign(said, VERDICT_FILE)
        with pytest.raises(IntegrityError, match=rf"{VERDICT_FILE}: .*{reason}"):
            import_folder(forger.folder)
    forger.sign(said.model_copy(update={"predicate_type": PROVENANCE}), VERDICT_FILE)
    with pytest.raises(IntegrityError, match=f"{VERDICT_FILE}: .*wanted is"):
        import_folder(forger.folder)


def test_raw_objects_are_named_by_their_sha256_and_by_nothing_else(forger: Forger) -> None:
    rows = [{"name": "first.csv", "size": 1, "sha256": "../../../etc/hostname"}]
    (forger.folder / SNAPSHOT_FILE).write_bytes(orjson.dumps(rows))
    digest = table_digest(pl.DataFrame(rows, schema=SNAPSHOT_SCHEMA))
    forger.recipe(lambda record: record["body"].update(snapshot=digest))
    # It is of the version as it was.
    (forger.folder / VERDICT_FILE).unlink()
    verify(LocalFolder(forger.folder))
    with pytest.raises(IntegrityError, match=rf"{SNAPSHOT_FILE}: not every `sha256`"):
        import_folder(forger.folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda body: body["settings"].pop("confidence"), "settings.gate.confidence"),
        (lambda body: body["settings"].pop("data"), "settings.data"),
        (lambda body: body["settings"].update(extra=1), "settings.extra"),
        (lambda body: body["settings"]["training"].update(epochs="many"), "training.epochs"),
        (lambda body: body["settings"]["model"].update(type="os:system"), "settings.model"),
        (lambda body: body["stages"].pop("train"), "stages.train"),
    ],
)
def test_settings_that_are_not_a_lines_are_another_releases(
    forger: Forger, change: Change, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMINT_LINES", str(GOLDEN.parents[2] / "lines"))
    assert recorded_line(forger.whole.recipe).name == "diabetes"
    body = forger.whole.recipe.model_dump(mode="json")
    change(body)
    with pytest.raises(ChangedCodeError) as raised:
        recorded_line(Recipe.model_validate(body))
    assert VERSION_FILE in str(raised.value)
    assert field in str(raised.value)


def test_a_signature_that_does_not_fit_is_refused(
    forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMINT_LINES", str(GOLDEN.parents[2] / "lines"))
    line = recorded_line(forger.whole.recipe)
    files = {**forger.whole.files, SIGNATURE_FILE: b'{"features": {}}'}
    with pytest.raises(
        IntegrityError, match=rf"{SIGNATURE_FILE} is no signature .*features: .*no `type`"
    ):
        check_numbers(line, forger.whole.model_copy(update={"files": files}), ("train",))
