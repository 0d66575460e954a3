"""A real server process, and what it answers."""

import http.client
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import psutil

from models.trust import KEYS_SETTING
from tests.conftest import ROOT
from tests.deployments.serving.versions import Version, trusted

COMMAND = (sys.executable, "-m", "deployments.serving")


class Answer(NamedTuple):
    """A whole HTTP response; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Server:
    """One server process over a repository folder."""

    def __init__(
        self,
        root: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        command: tuple[str, ...] = COMMAND,
    ):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.root = root
        self._log = root.parent / f"{root.name}.log"
        self._key = root / ".server" / "first-key"
        places = {KEYS_SETTING: str(trusted().folder)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--repository", str(root), *options],
                cwd=ROOT,
                env=os.environ | places | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _wait(self) -> None:
        watched = os.pidfd_open(self.process.pid)
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return
                except OSError:
                    if select.select([watched], [], [], 0.05)[0]:
                        raise RuntimeError(f"the server ended:\n{self.log}") from None
        finally:
            os.close(watched)
        raise RuntimeError(f"the server does not listen:\n{self.log}")

    @property
    def key(self) -> str:
        """The key that may do everything."""
        return self._key.read_text()

    @property
    def bearer(self) -> dict[str, str]:
        """The header that shows it."""
        return {"authorization": f"Bearer {self.key}"}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own, with our key; a dict is sent as JSON."""
        headers = {**self.bearer, **headers}
        connection = self.connect()
        try:
            return exchange(connection, method, path, body, **headers)
        finally:
            connection.close()

    def load(self, version: Version, number: str, source: str | None = None) -> Answer:
        parameters = {"version": number, "digest": version.digest}
        if source is not None:
            parameters["source"] = source
        path = f"/v2/repository/models/{version.line}/load"
        return self.ask("POST", path, {"parameters": parameters})

    def promote(self, line: str, number: str) -> Answer:
        return self.ask("POST", f"/v1/lines/{line}/promote", {"version": number})

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def decoders(self) -> list[psutil.Process]:
        """Its decoders, at least one, known by the kernel's order to end them first."""
        found = [
            one
            for one in psutil.Process(self.process.pid).children(recursive=True)
            if Path(f"/proc/{one.pid}/oom_score_adj").read_text().strip() == "1000"
        ]
        assert found
        return found


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **named: str
) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in named.items()}
    if isinstance(body, dict):
        body = orjson.dumps(body)
        headers.setdefault("content-type", "application/json")
    connection.request(method, path, body, headers)
    return answer_to(connection)


def answer_to(connection: http.client.HTTPConnection) -> Answer:
    """The answer to what was asked over the connection."""
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())
