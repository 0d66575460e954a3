"""A key that is revoked is refused by every worker, those that were killed and begun anew too."""

import os
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.deployments.serving.bad import key
from tests.deployments.serving.server import Server, exchange
from tests.deployments.serving.test_control import NO_STORE, eventually


@pytest.fixture
def server(start: Any, tmp_path: Path) -> Server:
    started: Server = start(tmp_path / "repository", "--workers", "2", environment=NO_STORE)
    assert eventually(lambda: len(alive(started)) == 2)
    return started


def alive(server: Server) -> set[int]:
    """The workers that serve, as they say themselves."""
    told = (server.root / ".workers").glob("*.json")
    found = {int(path.name.partition("-")[0]) for path in told}
    return found & {child.pid for child in psutil.Process(server.process.pid).children()}


def callers(pid: int) -> set[int]:
    """The ports of those a process is connected to."""
    with suppress(psutil.NoSuchProcess):  # it was killed, and is no more, or not quite
        found = psutil.Process(pid).net_connections("tcp")
        return {one.raddr.port for one in found if one.raddr}
    return set()


def asked(server: Server, shown: dict[str, str]) -> tuple[int, int]:
    """Which worker answers somebody with this key, and with what status."""
    with closing(server.connect()) as connection:
        assert exchange(connection, "GET", "/v2/health/live").status == 200
        port = connection.sock.getsockname()[1]
        [worker] = [pid for pid in alive(server) if port in callers(pid)]
        return worker, exchange(connection, "GET", "/v2", **shown).status


def answers(server: Server, workers: set[int], shown: dict[str, str], last: int) -> None:
    """Check that each of the workers comes to answer with that status, and then with no other."""
    found: dict[int, list[int]] = {pid: [] for pid in workers}

    def often() -> bool:
        worker, status = asked(server, shown)
        found[worker].append(status)
        return all(statuses.count(last) >= 3 for statuses in found.values())

    assert eventually(often), found
    for statuses in found.values():
        assert statuses == sorted(statuses)


def revoke(server: Server, shown: dict[str, str]) -> None:
    identity = shown["authorization"].split("_")[1]
    assert server.ask("POST", f"/v1/keys/{identity}/revoke", {}).status == 200


def test_every_worker_refuses_a_key_it_has_let_in(server: Server) -> None:
    shown, other = key(server, "leaving", "read:*"), key(server, "staying", "read:*")
    answers(server, alive(server), shown, 200)  # from now on it is remembered there
    revoke(server, shown)
    answers(server, alive(server), shown, 401)
    answers(server, alive(server), other, 200)


def test_a_key_revoked_as_a_worker_is_killed_is_refused_by_all(server: Server) -> None:
    shown, before = key(server, "leaving", "read:*"), alive(server)
    answers(server, before, shown, 200)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    revoke(server, shown)
    assert eventually(lambda: len(alive(server) - {killed}) == 2)
    assert len(alive(server) - before) == 1
    answers(server, alive(server) - {killed}, shown, 401)


def test_a_key_revoked_while_a_worker_is_dead_is_never_let_in_again(server: Server) -> None:
    shown, before = key(server, "leaving", "read:*"), alive(server)
    answers(server, before, shown, 200)
    killed = min(before)
    # Who would begin it anew is held until the key is revoked.
    server.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(killed, signal.SIGKILL)
        revoke(server, shown)
    finally:
        server.process.send_signal(signal.SIGCONT)
    seen: set[int] = set()

    def both() -> bool:
        # The one that is left revoked it, so it knows; the other begins after that.
        worker, status = asked(server, shown)
        assert status == 401
        seen.add(worker)
        return len(seen) == 2

    assert eventually(both)
    assert killed not in seen
    answers(server, seen, shown, 401)
    assert "Traceback" not in server.log
