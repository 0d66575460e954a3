import sys
from pathlib import Path

from deployments.local.model_server import environment, model_server
from deployments.local.service import Running


def test_its_command_names_the_repository_and_stays_on_loopback(tmp_path: Path) -> None:
    assert model_server(tmp_path).command({"http": 4321}) == [
        *(sys.executable, "-m", "deployments.serving"),
        *("--host", "127.0.0.1", "--port", "4321"),
        *("--repository", str(tmp_path / "serving")),
    ]


def test_clients_are_given_its_address(tmp_path: Path) -> None:
    running = Running("model_server", "http://127.0.0.1:4321", 1, {"http": 4321}, tmp_path / "log")
    assert environment(running) == {"MODELMINT_ENDPOINT": "http://127.0.0.1:4321"}
