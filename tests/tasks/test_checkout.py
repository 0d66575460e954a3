"""The recorded code and libraries of a version: kept whole, unpacked safely, installed exactly."""

import io
import os
import random
import subprocess
import tarfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from models.digests import IntegrityError, json_digest
from models.trust import PublicKey
from tasks import checkout, signing, source
from tasks.folders import LocalFolder
from tasks.recorded import CannotReplayError
from tasks.verify import proven
from tests.conftest import environment

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_archive_is_all_of_the_code_and_repeats(tmp_path: Path) -> None:
    # Other tests of this process may have packed other lines too.
    source.archive.cache_clear()
    packed = source.archive()
    source.archive.cache_clear()
    assert source.archive() == packed
    source.extract(packed, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert {"modelmint.py", "flows/produce.py", "models/lines/digits.py"} <= names
    assert (tmp_path / "tasks/clean.py").read_bytes() == Path("tasks/clean.py").read_bytes()
    assert source.COMMAND + ".py" in names


@pytest.mark.parametrize("name", ["../outside.py", "/absolute.py", "models/../../outside.py"])
def test_an_archive_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(IntegrityError, match="no file of a checkout"):
        source.extract(packed.getvalue(), tmp_path / "in")
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("damage", ["empty", "cut", "no gzip", "twice", "link"])
def test_an_archive_that_is_not_whole_or_holds_other_things_is_refused(
    tmp_path: Path, damage: str
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for _ in range(2 if damage == "twice" else 1):
            member = tarfile.TarInfo("tasks/clean.py")
            member.size = 5000
            tar.addfile(member, io.BytesIO(random.Random(0).randbytes(5000)))
        if damage == "link":
            link = tarfile.TarInfo("tasks/store.py")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
    whole = packed.getvalue()
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "no gzip": b"PK" + whole[2:]}
    with pytest.raises(IntegrityError, match=source.FILE):
        source.extract(contents.get(damage, whole), tmp_path)
    assert not (tmp_path / "tasks" / "store.py").exists()


def test_a_lock_that_cannot_be_installed_says_which_distribution(tmp_path: Path) -> None:
    # A file that is no wheel, so that the answer is the same without a network.
    settings = {checkout.ENVIRONMENTS_SETTING: str(tmp_path), "PIP_NO_INDEX": "1"}
    with environment(**settings), pytest.raises(CannotReplayError, match=r"lock.*no-such-thing"):
        checkout.environment({"no-such-thing": "1.0"})


def test_all_that_a_stage_stands_on_is_installed(tmp_path: Path) -> None:
    """A release before this one did not write down setuptools, and compared it."""
    folder = GOLDEN / "earlier" / "diabetes"
    with environment(MODELMINT_KEYS=str(tmp_path)):
        signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
        found = proven(LocalFolder(folder))
    lock = checkout.recorded_lock(found)
    stood_on = found.recipe.stages["compress"].identity.distributions
    assert "setuptools" in stood_on
    assert "setuptools" not in found.provenance.lock()
    assert found.provenance.lock().items() <= lock.items()
    names = [canonicalize_name(name) for name in lock]
    assert len(names) == len(set(names))
    assert set(stood_on) <= set(names)


def test_two_replays_at_once_make_one_environment_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    create = venv.create

    def counting(folder: Path, **options: Any) -> None:
        made.append(folder)
        create(folder, **options)

    monkeypatch.setattr(venv, "create", counting)
    monkeypatch.delenv(checkout.ENVIRONMENTS_SETTING, raising=False)
    # What one that was killed has left.
    folder = tmp_path / "environments" / json_digest({})[:16]
    (folder / "half").mkdir(parents=True)
    with environment(MODELMINT_HOME=str(tmp_path), PIP_NO_INDEX="1"), ThreadPoolExecutor(2) as pool:
        first, second = pool.map(checkout.environment, [{}, {}])
    assert first == second == folder / "bin" / "python"
    assert made == [folder]
    assert not (folder / "half").exists()
    subprocess.run([first, "-c", ""], check=True)


def test_a_git_that_takes_too_long_costs_the_commit_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o700)
    monkeypatch.setattr(source, "PATIENCE", 0.2)
    with environment(PATH=f"{tmp_path}:{os.environ['PATH']}"):
        assert source.commit() == ""
