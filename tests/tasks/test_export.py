"""A version as a folder: whole and proven elsewhere, or refused with the file that is wrong."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from models.attestation import UntrustedError, signed
from models.digests import IntegrityError, bytes_digest
from models.trust import KEYS_SETTING, PublicKey
from tasks import signing
from tasks.export import ExportError, export, import_folder
from tasks.folders import LocalFolder, StoredFolder
from tasks.recorded import IMPORTED, CannotReplayError, recorded_line, recorded_snapshot
from tasks.refs import Verdict
from tasks.register import digest_of
from tasks.replay import compared, write_back
from tasks.snapshot import raw_objects, raw_prefix
from tasks.store import store
from tasks.verify import proven, verify
from tests.conftest import environment, new_bucket
from tests.tasks import samples
from tests.tasks.conftest import Trained, registered

LINE = "exported"


@pytest.fixture
def folder(trained: Trained, verdict: Verdict, tmp_path: Path) -> Path:
    """An exported version with its data."""
    number = registered(LINE, trained, verdict).number
    export(LINE, number, tmp_path / "version", data=True)
    return tmp_path / "version"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """Another site: its own bucket, registry and keys."""
    registry = f"sqlite:///{tmp_path}/elsewhere.db"
    settings = {KEYS_SETTING: str(tmp_path / "keys"), "MLFLOW_TRACKING_URI": registry}
    with environment(**settings), new_bucket():
        yield


def test_an_export_is_the_version_its_code_and_its_data(folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    raw = {name for name in names if name.startswith("raw/")}
    assert names - raw == {
        "MLmodel", "conda.yaml", "key.json", "manifest.json", "model.onnx", "provenance.json",
        "python_env.yaml", "requirements.txt", "sample.safetensors", "signature.json",
        "snapshot.json", "source.tar.gz", "verdict.json", "version.json",
    }  # fmt: skip
    assert len(raw) == len(json.loads((folder / "snapshot.json").read_bytes())) == 4
    said = verify(LocalFolder(folder))
    assert (said.line, said.replays) == (LINE, ())
    with pytest.raises(ExportError, match="there already"):
        export(LINE, 1, folder)


def test_another_site_decides_whom_to_trust_then_has_all_it_needs(
    folder: Path, elsewhere: None
) -> None:
    with pytest.raises(UntrustedError, match=r"not trusted here.*key\.json"):
        import_folder(folder)
    assert list(store().list("")) == []
    signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
    exported, number = import_folder(folder)
    assert (number, exported.raw_objects) == (1, 4)
    assert import_folder(folder)[1] == 1
    assert digest_of(LINE, 1) == exported.digest
    found = proven(StoredFolder(LINE, exported.digest))
    line = recorded_line(found.recipe)
    seen = recorded_snapshot(line, found)
    assert seen.digest == found.recipe.snapshot
    contents = {item.name: item.read(raw_prefix(line.data)) for item in raw_objects(seen)}
    assert contents["0.csv"] == samples.trips(range(100))
    # Another object of that name and size is here.
    store().put("raw/trips/0.csv", contents["0.csv"].replace(b"east", b"west"))
    seen = recorded_snapshot(line, found)
    again = {item.name: item.read(raw_prefix(line.data)) for item in raw_objects(seen)}
    assert again == contents
    store().delete("raw/trips/0.csv")
    for item in list(store().list(IMPORTED)):
        store().delete(item.key)
    with pytest.raises(CannotReplayError, match=r"missing raw object: .*\(4 of 4 objects\)"):
        recorded_snapshot(line, found)


def test_a_version_replayed_elsewhere_brings_the_keys_of_both_places(
    folder: Path, elsewhere: None, tmp_path: Path
) -> None:
    makers = PublicKey.model_validate_json((folder / "key.json").read_bytes())
    signing.add(makers)
    exported, number = import_folder(folder)
    found = proven(StoredFolder(LINE, exported.digest))
    write_back(compared(LINE, number, found.recipe, ()), found)
    again = tmp_path / "again"
    export(LINE, number, again)
    replayers = again / "keys" / f"{signing.keyid()}.json"
    assert [path.name for path in (again / "keys").iterdir()] == [replayers.name]
    third = {
        KEYS_SETTING: str(tmp_path / "third keys"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/third.db",
    }
    with environment(**third), new_bucket():
        with pytest.raises(UntrustedError) as raised:
            import_folder(again)
        assert f"{again / 'key.json'}, {replayers}" in str(raised.value)
        signing.add(PublicKey.model_validate_json((again / "key.json").read_bytes()))
        with pytest.raises(UntrustedError, match=r"replays/.*not trusted here") as raised:
            import_folder(again)
        assert str(replayers) in str(raised.value)
        assert "key.json" not in str(raised.value).replace(replayers.name, "")
        signing.add(PublicKey.model_validate_json(replayers.read_bytes()))
        import_folder(again)
        assert len(verify(StoredFolder(LINE, exported.digest)).replays) == 1


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "version.json", "manifest.json", "signature.json", "sample.safetensors",
     "MLmodel", "requirements.txt", "verdict.json", "snapshot.json", "source.tar.gz", "raw"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["altered", "cut", "gone"])
def test_a_damaged_export_is_refused_by_the_file_and_nothing_is_stored(
    folder: Path, elsewhere: None, name: str, damage: str
) -> None:
    signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
    path = sorted((folder / "raw").iterdir())[0] if name == "raw" else folder / name
    whole = path.read_bytes()
    content = bytearray(whole)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        # A letter within a word, so that JSON stays JSON.
        middle = next(i for i in range(len(content) // 2, len(content)) if content[i] > 96)
        content[middle] = ord("a") if content[middle] != ord("a") else ord("b")
        path.write_bytes(content)
    if (name, damage) == ("verdict.json", "gone"):
        # A version may come without a verdict: then nobody says it was promoted.
        assert import_folder(folder)[1] == 1
        return
    with pytest.raises(IntegrityError, match=path.name.split(".")[0]) as raised:
        import_folder(folder)
    assert list(store().list("")) == []
    # These are read before their digest is taken; a raw object is named by its own.
    if damage != "gone" and name not in ("snapshot.json", "verdict.json", "raw"):
        for read in (whole, path.read_bytes()):
            digests = hashlib.sha256(read).hexdigest(), bytes_digest(read)
            assert any(digest[:12] in str(raised.value) for digest in digests)


def test_a_stripped_a_foreign_and_an_expired_signature_are_refused(
    folder: Path, elsewhere: None
) -> None:
    key = PublicKey.model_validate_json((folder / "key.json").read_bytes())
    signing.add(key)
    found = proven(LocalFolder(folder))
    path = folder / "provenance.json"
    whole = orjson.loads(path.read_bytes())
    for signatures, reason in (
        ([], "carries no signature"),
        ([{**whole["signatures"][0], "sig": "AA=="}], "does not fit"),
    ):
        path.write_bytes(orjson.dumps({**whole, "signatures": signatures}))
        with pytest.raises(UntrustedError, match=reason):
            verify(LocalFolder(folder))
    # Signed anew, by a stranger who has all of it.
    from securesystemslib.signer import CryptoSigner

    path.write_bytes(signed(found.statement, [CryptoSigner.generate_ed25519()]))
    with pytest.raises(UntrustedError, match="not trusted here"):
        verify(LocalFolder(folder))
    path.write_bytes(orjson.dumps(whole))
    assert verify(LocalFolder(folder)).digest == found.recipe.digest
    signing.add(key.model_copy(update={"expires": "2020-01-01"}))
    with pytest.raises(UntrustedError, match="expired on 2020-01-01"):
        verify(LocalFolder(folder))
    signing.revoke(key.keyid[:12])
    with pytest.raises(UntrustedError, match="not trusted here"):
        verify(LocalFolder(folder))


def test_an_artifact_swapped_with_another_versions_is_refused(
    folder: Path, trained: Trained, verdict: Verdict, tmp_path: Path
) -> None:
    number = registered(LINE, trained, verdict, seed=7).number
    export(LINE, number, tmp_path / "other")
    for name in ("version.json", "verdict.json"):
        kept = (folder / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, folder / name)
        with pytest.raises(IntegrityError, match=name):
            verify(LocalFolder(folder))
        (folder / name).write_bytes(kept)
    # All of another version's files under this one's digest.
    digest = verify(LocalFolder(folder)).digest
    with pytest.raises(IntegrityError, match="another version or was altered"):
        verify(LocalFolder(tmp_path / "other"), LINE, digest)


def test_openssf_tools_verify_an_export(trained: Trained, verdict: Verdict, tmp_path: Path) -> None:
    number = registered(LINE, trained, verdict).number
    goal = tmp_path / "signed"
    export(LINE, number, goal, openssf=True)
    command = [
        sys.executable, "-m", "model_signing", "verify", "key",
        "--signature", str(goal / "model.sig"), "--public_key", str(goal / "openssf.pub"),
        str(goal),
    ]  # fmt: skip

    def checked() -> int:
        return subprocess.run(command, env=dict(os.environ), check=False).returncode

    assert checked() == 0
    with (goal / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    assert checked() != 0
