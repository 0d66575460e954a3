import sys
from pathlib import Path

import pytest

from deployments.local.model_server import environment, model_server
from deployments.local.service import Running


def test_its_command_names_the_repository_and_stays_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMINT_WORKERS", "3")
    assert model_server(tmp_path).command({"http": 4321}) == [
        *(sys.executable, "-m", "deployments.serving"),
        *("--host", "127.0.0.1", "--port", "4321"),
        *("--workers", "3"),
        *("--repository", str(tmp_path / "serving")),
        *("--first-key", str(tmp_path / "api-key")),
    ]


def test_clients_are_given_its_address_and_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running("model_server", "http://127.0.0.1:4321", 1, {"http": 4321}, tmp_path / "log")
    monkeypatch.delenv("MODELMINT_API_KEY", raising=False)
    (tmp_path / "api-key").write_text("mm_1_2\n")
    assert environment(tmp_path, running) == {
        "MODELMINT_ENDPOINT": "http://127.0.0.1:4321",
        "MODELMINT_API_KEY": "mm_1_2",
    }
    monkeypatch.setenv("MODELMINT_API_KEY", "mm_3_4")
    assert environment(tmp_path, running)["MODELMINT_API_KEY"] == "mm_3_4"
