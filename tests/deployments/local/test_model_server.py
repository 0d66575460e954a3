import sys
from pathlib import Path

import pytest

from deployments.local.certificate import local_certificate
from deployments.local.model_server import environment, model_server, use_https
from deployments.local.service import Running


def test_its_command_names_the_repository_and_stays_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMINT_WORKERS", "3")
    service = model_server(tmp_path)
    assert service.ports == ("http", "grpc")
    plain = [
        *(sys.executable, "-m", "deployments.serving"),
        *("--host", "127.0.0.1", "--port", "4321"),
        *("--workers", "3"),
        *("--repository", str(tmp_path / "serving")),
        *("--first-key", str(tmp_path / "api-key")),
        *("--grpc-port", "4322"),
    ]
    assert service.command({"http": 4321, "grpc": 4322}) == plain
    for name in ("MODELMINT_CERTIFICATE", "MODELMINT_PRIVATE_KEY"):
        monkeypatch.setenv(name, "")  # and with it what use_https sets is taken back
    use_https(tmp_path, True)
    secure = model_server(tmp_path)
    assert secure.ports == ("http", "grpc", "https")
    assert secure.command({"http": 4321, "grpc": 4322, "https": 4323}) == [
        *plain,
        *("--https-port", "4323"),
        *("--certificate", str(tmp_path / "tls" / "certificate.pem")),
        *("--private-key", str(tmp_path / "tls" / "private-key.pem")),
    ]


def test_a_certificate_is_kept_until_it_is_about_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local_certificate(tmp_path).certificate.read_bytes()
    assert local_certificate(tmp_path).certificate.read_bytes() == first
    monkeypatch.setattr("deployments.local.certificate.RENEWED", 366)
    assert local_certificate(tmp_path).certificate.read_bytes() != first


def test_another_port_moves_none_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELMINT_CERTIFICATE", raising=False)
    before = model_server(tmp_path).plan()
    monkeypatch.setenv("MODELMINT_CERTIFICATE", "x")
    with_https = model_server(tmp_path).plan()
    monkeypatch.delenv("MODELMINT_CERTIFICATE")
    assert set(with_https) == {"http", "grpc", "https"}
    assert before.items() <= with_https.items()
    assert model_server(tmp_path).plan() == before


def test_clients_are_given_its_address_and_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running("model-server", "http://127.0.0.1:4321", 1, {"http": 4321}, tmp_path / "log")
    monkeypatch.delenv("MODELMINT_API_KEY", raising=False)
    (tmp_path / "api-key").write_text("mm_1_2\n")
    assert environment(tmp_path, running) == {
        "MODELMINT_ENDPOINT": "http://127.0.0.1:4321",
        "MODELMINT_API_KEY": "mm_1_2",
    }
    monkeypatch.setenv("MODELMINT_API_KEY", "mm_3_4")
    assert environment(tmp_path, running)["MODELMINT_API_KEY"] == "mm_3_4"
