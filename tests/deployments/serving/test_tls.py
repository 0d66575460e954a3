"""TLS with certificates that are replaced while it serves."""

import http.client
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import orjson

from tests.deployments.serving.test_control import eventually
from tests.deployments.serving.test_main import run
from tests.production.certificates import write_certificates


def secure(server: Any, authority: Path, method: str = "GET", **headers: str) -> tuple[int, Any]:
    trusting = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, "/v2", headers=named)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_a_replaced_certificate_counts_without_a_restart(start: Any, tmp_path: Path) -> None:
    old = write_certificates(tmp_path / "old", "127.0.0.1")
    new = write_certificates(tmp_path / "new", "127.0.0.1")
    used = [tmp_path / name for name in ("cert", "key")]

    def put(files: dict[str, Path]) -> None:
        for path, name in zip(used, ("cert", "key"), strict=True):
            shutil.copy(files[name], path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    put(old)
    options = ("--certificate", str(used[0]), "--private-key", str(used[1]))
    server = start(tmp_path / "repository", *options)
    status, headers = secure(server, old["ca"], **server.bearer)
    assert status == 200
    assert headers["strict-transport-security"].startswith("max-age=")
    assert headers["x-content-type-options"] == "nosniff"

    def trusted(authority: Path) -> bool:
        try:
            return secure(server, authority, **server.bearer)[0] == 200
        except ssl.SSLCertVerificationError:
            return False

    assert not trusted(new["ca"])
    used[0].write_text("no certificate")
    assert eventually(lambda: "the one before still is" in server.log)
    assert trusted(old["ca"])
    put(new)
    assert eventually(lambda: trusted(new["ca"]))
    assert not trusted(old["ca"])


def test_wrong_certificates_are_one_line_and_no_start(tmp_path: Path) -> None:
    one = write_certificates(tmp_path / "one", "127.0.0.1")
    two = write_certificates(tmp_path / "two", "127.0.0.1")
    base = ("--repository", str(tmp_path / "repository"), "--port", "0")
    for key in (two["key"], tmp_path / "absent"):
        ended = run(*base, "--certificate", str(one["cert"]), "--private-key", str(key))
        assert ended.returncode == 1
        assert "are no pair" in ended.stderr
        assert "Traceback" not in ended.stderr
    alone = run(*base, "--certificate", str(one["cert"]))
    assert alone.returncode == 2
    assert "belong together" in alone.stderr


def test_what_is_no_http_is_refused_on_a_port_of_its_own_too(start: Any, tmp_path: Path) -> None:
    made = write_certificates(tmp_path / "made", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pair = ("--certificate", str(made["cert"]), "--private-key", str(made["key"]))
    start(tmp_path / "repository", "--https-port", str(port), *pair)
    trusting = ssl.create_default_context(cafile=str(made["ca"]))
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as talk,
    ):
        talk.sendall(b"HELLO\r\n\r\n")
        answer = http.client.HTTPResponse(talk)
        answer.begin()
        told = orjson.loads(answer.read())
    assert (answer.status, told["code"]) == (400, "invalid_http")
    assert told["request_id"] == answer.getheader("x-request-id")
    assert "strict-transport-security" in dict(answer.getheaders())
