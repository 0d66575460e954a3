"""A version that cannot be replayed here, or not be trusted, is refused with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.produce import Production, produce
from flows.replay import replay
from models import catalog
from models.attestation import UntrustedError
from models.digests import IntegrityError, json_digest
from models.signature import PROVENANCE_FILE, VERSION_FILE
from models.spec import Gate
from tasks import tracking
from tasks.export import export, import_folder
from tasks.folders import LocalFolder
from tasks.land import land
from tasks.promotion import version_folder
from tasks.recorded import CannotReplayError, ChangedEnvironmentError
from tasks.replay import DiffersError
from tasks.snapshot import raw_prefix
from tasks.store import store
from tasks.verify import proven
from tests.conftest import new_bucket, tell_workers
from tests.flows.elsewhere import command, in_prefect
from tests.forger import Forger

LINE = "diabetes"


def test_other_libraries_and_another_processor_are_exit_code_two_and_here_is_compared(
    first: Production, prefect_service: str, tmp_path: Path
) -> None:
    """A version that says other libraries compressed it and another processor evaluated it."""
    folder = tmp_path / "version"
    export(LINE, first.version.number, folder)
    # What was said of it is of the version as it was.
    (folder / "verdict.json").unlink()
    shutil.rmtree(folder / "replays", ignore_errors=True)

    def elsewhere(record: dict[str, Any]) -> None:
        stages = record["body"]["stages"]
        identity = stages["compress"]["identity"]
        identity["distributions"]["onnx"] = "0.1"
        stages["compress"]["key"] = json_digest(identity)
        stages["evaluate"] |= {"digest": "0" * 64, "fingerprint": {"torch": "0" * 64}}

    Forger(folder, proven(LocalFolder(folder))).recipe(elsewhere)
    _, number = import_folder(folder)
    try:
        found = command("replay", LINE, str(number), "--stage", "compress")
        assert found.returncode == 2, found.stderr[-2000:]
        answer = json.loads(found.stdout)
        assert "cannot be replayed here" in answer["error"]
        assert "changed distribution of stage compress: onnx 0.1 -> " in answer["reason"]
        with pytest.raises(ChangedEnvironmentError, match="different numeric platform: torch"):
            replay(LINE, number, "evaluate")
        state, artifact = in_prefect(prefect_service, LINE, number)
        assert state["type"] == "FAILED"
        assert "ChangedEnvironmentError: different numeric platform: torch" in state["message"]
        said = f"{LINE} version {number}: cannot be replayed: different numeric platform: torch"
        assert artifact["description"].startswith(said)
        [row] = artifact["data"]
        assert (row["stage"], row["recorded"], row["replayed"]) == ("evaluate", "0" * 64, None)
        assert (row["outcome"], row["reason"][:26]) == ("cannot", "different numeric platform")

        with pytest.raises(DiffersError) as raised:
            replay(LINE, number, "evaluate", here=True)
        here = raised.value.replay
        assert (here.verdict, here.first_difference) == ("differs", "evaluate")
        assert str(here.first_cause).startswith("different numeric platform: torch")
        state, artifact = in_prefect(prefect_service, LINE, number)
        assert state["type"] == "FAILED"
        assert f"{LINE} version {number} differs, first in stage evaluate" in state["message"]
        assert ": differs: stage evaluate: different numeric" in artifact["description"]
        [row] = artifact["data"]
        assert (row["recorded"], row["outcome"]) == ("0" * 64, "differs")
        assert row["replayed"] == here.stages[0].replayed
    finally:
        tracking.client().delete_model_version(LINE, str(number))


def test_a_missing_raw_object_is_exit_code_two(first: Production) -> None:
    key = raw_prefix(catalog.find(LINE).data) + "first.csv"
    content = store().get(key).content
    store().delete(key)
    try:
        found = command("replay", LINE, str(first.version.number))
    finally:
        store().put(key, content)
    assert found.returncode == 2, found.stderr
    answer = json.loads(found.stdout)
    assert "cannot be replayed here" in answer["error"]
    assert "missing raw object" in answer["reason"]
    assert "first.csv" in answer["reason"]


def other_values(content: bytes) -> bytes:
    """A table of the same size with another value in its last row."""
    changed = content[:-3] + (b"7\n" if content[-3:-2] != b"7" else b"8\n")
    return changed.ljust(len(content), b"\n")


def test_an_overwritten_raw_object_is_named(first: Production) -> None:
    """The bucket keeps no versions, so what was read is gone."""
    key = raw_prefix(catalog.find(LINE).data) + "first.csv"
    content = store().get(key).content
    store().put(key, other_values(content))
    try:
        with pytest.raises(CannotReplayError, match=rf"missing object: .*{key} changed since"):
            replay(LINE, first.version.number, "clean")
    finally:
        store().put(key, content)


def test_an_overwritten_raw_object_of_a_versioned_bucket_is_read_as_it_was(
    first: Production,
) -> None:
    line = catalog.find(LINE)
    training = line.training.model_copy(update={"epochs": 1})
    key = raw_prefix(line.data) + "first.csv"
    with new_bucket() as bucket:
        tell_workers(bucket)
        versioning: Any = {"Status": "Enabled"}
        store().client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning)
        land(line)
        # Refused, so that it is not deployed to the server the other tests ask.
        made = produce(LINE, training=training, gate=Gate(floors={"rmse": 0.001}))
        number = made.version.number
        try:
            recorded = store().get(key)
            assert recorded.version
            store().put(key, other_values(recorded.content))
            assert store().get(key).version != recorded.version
            found = replay(LINE, number, "clean")
            assert found.verdict == "identical"
            store().delete(key)
            assert replay(LINE, number, "clean").verdict == "identical"
            store().client.delete_object(Bucket=bucket, Key=key, VersionId=recorded.version)
            with pytest.raises(CannotReplayError, match=rf"missing raw object: .*{key} is gone"):
                replay(LINE, number, "clean")
        finally:
            tracking.client().delete_model_version(LINE, str(number))
            tell_workers(first_bucket(first))


def first_bucket(first: Production) -> str:
    """The bucket that all tests of this package share."""
    return first.version.source.removeprefix("s3://").partition("/")[0]


def test_a_version_signed_by_nobody_trusted_is_exit_code_two(
    first: Production, tmp_path: Path
) -> None:
    strange = {"MODELMINT_KEYS": str(tmp_path)}
    for word in ("replay", "verify"):
        found = command(word, LINE, str(first.version.number), **strange)
        assert found.returncode == 2, found.stderr
        assert "not trusted here" in json.loads(found.stdout)["reason"]


@pytest.mark.parametrize(
    ("name", "before", "after", "error"),
    [
        (VERSION_FILE, b'"epochs":30', b'"epochs":31', IntegrityError),
        (PROVENANCE_FILE, b'"payload":"ey', b'"payload":"eZ', UntrustedError),
    ],
)
def test_an_altered_record_is_refused(
    first: Production, name: str, before: bytes, after: bytes, error: type[Exception]
) -> None:
    key = version_folder(LINE, first.version.digest) + name
    kept = store().get(key).content
    assert before in kept
    store().put(key, kept.replace(before, after))
    try:
        with pytest.raises(error, match="altered"):
            replay(LINE, first.version.number)
    finally:
        store().put(key, kept)
