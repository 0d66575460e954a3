"""Commands on an exported version, as people type them: trust, verify, import, compare, export."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments.local.stack import HOME_SETTING
from modelmint import app
from models.catalog import SETTING
from models.digests import bytes_digest
from models.trust import KEYS_SETTING
from tasks.folders import LocalFolder
from tasks.verify import proven
from tests.conftest import ROOT, environment
from tests.forger import Forger

LINE = "diabetes"
GOLDEN = ROOT / "tests" / "golden" / "current" / LINE


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    """A place that has never seen a version and trusts nobody."""
    settings = {
        HOME_SETTING: str(tmp_path / "home"),
        KEYS_SETTING: str(tmp_path / "keys"),
        SETTING: str(ROOT / "tests" / "lines"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    with environment(**settings):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export that may be written to."""
    return shutil.copytree(GOLDEN, tmp_path / "version")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)


def answer(*words: str) -> dict[str, Any]:
    """What the command prints; it must not be refused."""
    found = run(*words)
    assert found.exit_code == 0, found.output
    said: dict[str, Any] = json.loads(found.stdout)
    return said


def reason(*words: str) -> str:
    """Why the command is refused."""
    found = run(*words)
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.stderr
    return str(json.loads(found.stdout)["reason"])


def test_a_key_is_made_anew_and_revoked_and_expires() -> None:
    first = answer("trust", "rotate", "--expires", "2999-12-31")
    assert first["expires"] == "2999-12-31"
    second = answer("trust", "rotate")
    assert second["expires"] == "never"
    # What the first signed still counts.
    keys = {key["keyid"]: key["signs"] for key in answer("trust", "list")["keys"]}
    assert keys == {first["keyid"]: False, second["keyid"]: True}
    assert answer("trust", "revoke", first["keyid"][:12])["keyid"] == first["keyid"]
    assert [key["keyid"] for key in answer("trust", "list")["keys"]] == [second["keyid"]]


def test_who_is_trusted_decides_what_verifies() -> None:
    key = json.loads((GOLDEN / "key.json").read_bytes())["keyid"]
    add = ("trust", "add", str(GOLDEN / "key.json"), "--owner", "us")
    assert "not trusted here" in reason("verify", str(GOLDEN))
    assert answer(*add, "--expires", "2001-01-31")["expires"] == "2001-01-31"
    assert "expired on 2001-01-31" in reason("verify", str(GOLDEN))
    assert answer(*add)["owner"] == "us"
    assert answer("verify", str(GOLDEN))["verified"] is True
    answer("trust", "revoke", key[:8])
    assert "not trusted here" in reason("verify", str(GOLDEN))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", str(GOLDEN / "version.json")), "version.json is no public key"),
        (("add", str(GOLDEN / "model.onnx")), "model.onnx is no public key"),
        (("add", str(GOLDEN / "nothing.json")), "nothing.json"),
        (("revoke", "00"), "0 trusted keys begin with '00'"),
    ],
)
def test_what_is_no_key_is_refused(words: tuple[str, ...], said: str) -> None:
    assert said in reason("trust", *words)


def test_a_broken_file_among_the_trusted_is_refused_by_name(tmp_path: Path) -> None:
    answer("trust", "rotate")
    (tmp_path / "keys" / "trusted" / "strange.json").write_text("{}")
    for words in (("list",), ("revoke", "00")):
        assert "strange.json is no public key" in reason("trust", *words)


@pytest.mark.parametrize("command", ["verify", "import"])
@pytest.mark.parametrize(
    "name",
    ["model.onnx", "version.json", "manifest.json", "signature.json", "sample.safetensors",
     "MLmodel", "requirements.txt"],
)  # fmt: skip
def test_a_tampered_folder_is_refused_by_file_and_digest(
    folder: Path, name: str, command: str, bucket: str
) -> None:
    answer("trust", "add", str(folder / "key.json"))
    whole = (folder / name).read_bytes()
    tampered = bytes([*whole[:-1], whole[-1] ^ 1])
    (folder / name).write_bytes(tampered)
    said = reason(command, str(folder))
    assert f"{name}: " in said
    for content in (whole, tampered):
        digests = hashlib.sha256(content).hexdigest(), bytes_digest(content)
        assert any(digest[:12] in said for digest in digests), said


def test_two_versions_are_compared_on_a_page_and_exported_with_an_openssf_signature(
    folder: Path, bucket: str, tmp_path: Path
) -> None:
    answer("trust", "add", str(folder / "key.json"))
    assert answer("import", str(folder))["version"] == 1
    # It is of the version as it was.
    (folder / "verdict.json").unlink()
    forger = Forger(folder, proven(LocalFolder(folder)))
    forger.recipe(lambda record: record["body"]["settings"]["training"].update(seed=7))
    assert answer("import", str(folder))["version"] == 2

    page = tmp_path / "page.html"
    found = answer("compare", LINE, "1", "2", "--html", str(page))
    digests = [answer("verify", LINE, number)["digest"] for number in ("1", "2")]
    assert (found["a"]["digest"], found["b"]["digest"]) == tuple(digests)
    text = page.read_text()
    for said in (*(digest[:12] for digest in digests), "training.seed"):
        assert said in text
    assert "cifar has no version 1" in reason("compare", "cifar", "1", "2")

    goal = tmp_path / "signed"
    answer("export", LINE, "1", str(goal), "--openssf")
    command = [
        sys.executable, "-m", "model_signing", "verify", "key",
        "--signature", str(goal / "model.sig"), "--public_key", str(goal / "openssf.pub"),
    ]  # fmt: skip
    subprocess.run([*command, str(goal)], check=True)
    assert answer("verify", str(goal))["digest"] == digests[0]
    assert "there already" in reason("export", LINE, "1", str(goal), "--openssf")
