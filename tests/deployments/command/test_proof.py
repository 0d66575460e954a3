"""Exit codes of the commands that prove: 2 for what is refused, another one for a bug of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner, Result

from deployments.command import proof
from models.attestation import UntrustedError
from models.trust import TrustError
from tasks import verify
from tasks.isolated import IsolatedError, ResourceError
from tasks.recorded import ChangedCodeError
from tasks.store import MissingError, StoreError

BUG = 70
REFUSALS = (
    UntrustedError, TrustError, ChangedCodeError, MissingError, StoreError, ResourceError,
    MlflowException, ConnectionRefusedError,
)  # fmt: skip
BUGS = (KeyError, TypeError, ValueError, RuntimeError, LookupError, AssertionError, IsolatedError)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMINT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MODELMINT_TRACEBACK", raising=False)


def run(*words: str) -> Result:
    return CliRunner().invoke(proof.app, list(words), catch_exceptions=False)


def raising(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `verify` raise it in the middle of its work."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(verify, "verify", fail)


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused_is_exit_code_two(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(kind("the reason"), monkeypatch)
    found = run("verify", str(tmp_path), "--json")
    assert found.exit_code == 2
    said = {"error": f"{tmp_path} is refused", "reason": f"{kind.__name__}: the reason"}
    assert json.loads(found.stdout) == said
    assert "Traceback" not in found.stderr
    assert run("verify", str(tmp_path)).stderr.count("\n") == 1


@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_is_no_refusal(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(kind("the bug"), monkeypatch)
    for words in (["verify", str(tmp_path)], ["verify", str(tmp_path), "--json"]):
        found = run(*words)
        assert found.exit_code == BUG
        assert "Traceback" in found.stderr
        assert "in fail" in found.stderr
    assert json.loads(found.stdout)["error"] == "this is a bug of Modelmint"


def test_an_answer_that_cannot_be_shown_is_a_bug_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "verify", lambda _: None)
    assert run("verify", str(tmp_path)).exit_code == BUG


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = run("verify", str(tmp_path / "nothing"))
    assert found.exit_code == 2
    assert "nothing is no folder" in found.stderr


@pytest.mark.parametrize(
    ("words", "variable", "address"),
    [
        (["verify", "diabetes", "1"], "AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        (["verify", "diabetes", "1"], "MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
        (["replay", "diabetes", "1"], "PREFECT_API_URL", "http://127.0.0.1:9/api"),
    ],
)
def test_a_service_that_does_not_answer_is_exit_code_two(
    words: list[str], variable: str, address: str, bucket: str
) -> None:
    """In a process of its own: Prefect reads its settings once."""
    variables = {variable: address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    found = subprocess.run(
        [sys.executable, "-m", "modelmint", *words, "--json"],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2, found.stderr[-2000:]
    assert "127.0.0.1" in json.loads(found.stdout)["reason"]


def test_a_version_that_was_never_registered_is_exit_code_two(bucket: str) -> None:
    found = run("verify", "cifar", "1")
    assert found.exit_code == 2
    assert "cifar has no version 1" in found.stderr
