"""`modelmint serve` as clients find it, and what promote and rollback say when something fails."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from typer.testing import CliRunner, Result

from deployments.command import serving
from deployments.local import stack
from deployments.serving.folder import version_folder
from models.signature import VERSION_FILE
from models.trust import TRUSTED
from tasks import production, promotion
from tasks.server import DeploymentError
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "current" / "diabetes"


class Home(NamedTuple):
    """A home whose server has `diabetes` 1 in production, and what `serve --https` printed."""

    folder: Path
    told: dict[str, str]
    bearer: dict[str, str]
    environment: dict[str, str]

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "modelmint", *words], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    key = json.loads((GOLDEN / "key.json").read_text())
    (folder / "keys" / TRUSTED).mkdir(parents=True)
    shutil.copy(GOLDEN / "key.json", folder / "keys" / TRUSTED / f"{key['keyid']}.json")
    shutil.copytree(GOLDEN, version_folder(folder / "serving", "diabetes", "1"))
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "MODELMINT_"))}
    # The store is elsewhere, and down: what is served needs none.
    environment = kept | {
        "MODELMINT_HOME": str(folder), "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "MODELMINT_LINES": str(ROOT / "tests" / "lines"),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "modelmint", "serve", "--https", "--json"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        bearer = {"authorization": f"Bearer {(folder / 'api-key').read_text()}"}
        digest = json.loads((GOLDEN / VERSION_FILE).read_bytes())["digest"]
        with httpx.Client(base_url=told["endpoint"], headers=bearer) as client:
            wanted = {"parameters": {"version": "1", "digest": digest}}
            for path, body in (
                ("/v2/repository/models/diabetes/load", wanted),
                ("/v1/lines/diabetes/promote", {"version": "1", "recorded": "by hand"}),
            ):
                assert client.post(path, json=body).status_code == 200
        yield Home(folder, told, bearer, environment)
        process.terminate()
        assert process.wait(60) == 0


def given(module: Any) -> list[Any]:
    tensors = []
    for name, datatype in (("numbers", "FP32"), ("categories", "INT64")):
        width = {"numbers": 4, "categories": 1}[name]
        one = module.InferInput(name, [1, width], datatype)
        one.set_data_from_numpy(np.zeros((1, width), {"FP32": np.float32}.get(datatype, np.int64)))
        tensors.append(one)
    return tensors


def test_tritons_clients_work_unmodified_against_serve(home: Home) -> None:
    pem = (home.folder / "tls" / "certificate.pem").read_bytes()
    secure = tritonclient.grpc.InferenceServerClient(
        home.told["grpc"].removeprefix("grpcs://"),
        creds=grpc.ssl_channel_credentials(pem),
    )
    with tritonclient.http.InferenceServerClient(
        home.told["endpoint"].removeprefix("http://")
    ) as plain:
        answers = []
        for client, module in ((plain, tritonclient.http), (secure, tritonclient.grpc)):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("diabetes", headers=dict(home.bearer))
            found = client.infer("diabetes", given(module), headers=dict(home.bearer))
            answers.append(found.as_numpy("prediction").tolist())
    secure.close()
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1


def test_https_answers_with_a_certificate_of_this_machine(home: Home) -> None:
    trusting = ssl.create_default_context(cafile=home.folder / "tls" / "certificate.pem")
    request = urllib.request.Request(home.told["https"] + "/v2", headers=home.bearer)
    with urllib.request.urlopen(request, context=trusting, timeout=30) as answer:
        assert answer.status == 200
        assert answer.headers["strict-transport-security"]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(request, context=ssl.create_default_context(), timeout=30)
    plain = httpx.get(home.told["endpoint"] + "/v2", headers=home.bearer)
    assert "strict-transport-security" not in plain.headers
    assert (home.folder / "tls" / "private-key.pem").stat().st_mode & 0o77 == 0


def test_status_shows_every_address(home: Home) -> None:
    services = json.loads(home.run("status", "--json").stdout)["services"]
    [server] = [one for one in services if one["name"] == "model-server"]
    assert server["url"] == home.told["endpoint"]
    assert server["others"] == [home.told["grpc"], home.told["https"]]


def test_half_a_pair_of_files_is_refused(home: Home) -> None:
    ended = home.run("serve", "--certificate", str(home.folder / "tls" / "certificate.pem"))
    assert ended.returncode == 1
    assert "belong together" in ended.stderr


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need services find some named, and their work replaced."""
    monkeypatch.setenv("MODELMINT_HOME", str(tmp_path))
    for name in stack.ADDRESSES.values():
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = {"line": "flights", "version": 2, "replaced": 1}
    monkeypatch.setattr(production, "promote_version", lambda *_: dict(done))
    monkeypatch.setattr(production, "roll_back", lambda *_: dict(done))


def failing(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)


def run(*words: str) -> Result:
    return CliRunner().invoke(serving.app, list(words), catch_exceptions=False)


CHANGES = (("promote", "flights", "2"), ("rollback", "flights"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize(
    ("error", "code"), [(DeploymentError("down"), 0), (OSError("down"), 0), (KeyError("x"), 70)]
)
def test_a_change_that_is_done_is_told_whatever_follows(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: Exception, code: int
) -> None:
    failing(monkeypatch, promotion, "mirror", error)
    failing(monkeypatch, production, "catch_up", error)
    found = run(*words, "--json")
    assert found.exit_code == code
    assert json.loads(found.stdout)["recorded"] is False
    assert "is in production" in found.stderr
    assert ("Traceback" in found.stderr) == (code == 70)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize(("error", "code"), [(DeploymentError("no"), 2), (TypeError("x"), 70)])
def test_a_change_that_is_refused_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: Exception, code: int
) -> None:
    for name in ("promote_version", "roll_back"):
        failing(monkeypatch, production, name, error)
    found = run(*words, "--json")
    assert found.exit_code == code
    assert json.loads(found.stdout)["reason"].endswith(str(error))
