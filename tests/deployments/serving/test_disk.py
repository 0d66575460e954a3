"""A model server whose disk is full, or whose files are damaged: it answers, refuses what it could
not keep, and goes on."""

import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from deployments.serving.disk import ROOM, written
from deployments.serving.journal import Journal
from deployments.serving.keys import Keys
from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from deployments.serving.state import Canary
from deployments.serving.traffic import Traffic
from tests.deployments.disks import ends, fill, small_disk
from tests.deployments.serving.test_control import (
    BODY,
    INFER,
    NO_STORE,
    ROLLBACK,
    eventually,
    placed,
)
from tests.deployments.serving.test_metrics import found, samples

PROMOTE = "/v1/lines/air-time/promote"
UNWRITTEN = r"cannot write (audit\.jsonl|state\.json|keys\.json): No space left on device"
KEY = {"tenant": "acme", "scopes": ["predict:*"]}


def workers(root: Path) -> set[int]:
    return {int(path.name.partition("-")[0]) for path in root.glob(".workers/*.json")}


def test_requests_are_answered_and_what_cannot_be_written_is_refused(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"

    with small_disk(root, 16) as disk:
        versions = placed(root, table, "1", "2", "3")
        server = start(root, "--workers", "2", environment=NO_STORE)
        for number in "12":
            assert server.load(versions[number], number).status == 200
            assert server.promote("air-time", number).status == 200
        assert eventually(lambda: len(workers(root)) == 2)
        made = server.ask("POST", "/v1/keys", KEY).json
        filler = fill(disk)
        for number in range(20):
            told = server.ask("POST", INFER, BODY, x_request_id=f"full-{number}")
            assert (told.status, told.headers["modelmint-version"]) == (200, "2")
            assert server.ask("GET", f"/v1/requests/full-{number}").status == 200
        load = {"parameters": {"version": "3", "digest": versions["3"].digest}}
        for path, body in (
            (ROLLBACK, {}),
            (PROMOTE, {"version": "1"}),
            ("/v2/repository/models/air-time/load", load),
            ("/v1/keys", KEY),
            (f"/v1/keys/{made['id']}/revoke", {}),
        ):
            answer = server.ask("POST", path, body)
            assert (answer.status, answer.json["code"]) == (503, "disk"), path
            # What the log of actions has left of its page takes some of them.
            assert re.search(UNWRITTEN, answer.json["error"])
        # Whoever starts now would end for want of room, and be started again for ever.
        killed = min(workers(root))
        os.kill(killed, signal.SIGKILL)
        assert eventually(lambda: "make room; this worker starts after that" in server.log)
        assert server.ask("POST", INFER, BODY, x_request_id="last").status == 200
        filler.unlink()
        assert eventually(lambda: len(workers(root) - {killed}) == 2)
        told = server.ask("POST", ROLLBACK, {})
        assert (told.status, told.json["version"]) == (200, "1")
        # Whichever worker is asked.
        assert eventually(lambda: server.ask("GET", "/v1/requests/last").json["requests"] != [])
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_what_a_trial_does_is_counted_once_there_is_room_and_no_answer_fails(
    here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = Canary(version="2", percent=50)
    headers = {"modelmint-model": "air-time", "modelmint-version": "2", "modelmint-digest": "0"}
    key, _ = Keys(tmp_path / "keys").create("acme", ("predict:*",))
    state = {"headers": headers, "key": key, "trial": canary}
    journal = Journal(tmp_path / "requests")
    with small_disk(tmp_path / "disk", 1) as disk:
        traffic = Traffic(Repository(tmp_path / "repository", here), journal, disk / "trials")
        (disk / "trials").mkdir()
        filler = fill(disk)

        def note() -> None:
            with caplog.at_level(logging.ERROR):
                for _ in range(3):
                    traffic.note(state, 200, 1000)
            assert caplog.text.count("No space left on device") == 1
            with pytest.raises(ProtocolError, match="No space left on device"):
                traffic.compared("air-time", canary)

        assert ends(note) == 0
        filler.unlink()
        traffic.note(state, 200, 1000)
        assert traffic.compared("air-time", canary)["canary"]["requests"] == 1


def test_no_server_starts_on_a_full_disk(start: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    with small_disk(root, 4) as disk:
        filler = fill(disk, ROOM // 2)
        with pytest.raises(RuntimeError, match=f"the disk of {root}.* is full: make room"):
            start(root)
        os.truncate(filler, 0)
        assert start(root).stop() == 0


@pytest.mark.parametrize(
    ("file", "change"), [(".server/keys.json", "/v1/keys"), ("state.json", ROLLBACK)]
)
def test_a_damaged_file_changes_nothing_and_is_told(
    start: Any, table: Any, tmp_path: Path, file: str, change: str
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1", "2")
    server = start(root, environment=NO_STORE)
    for number in "12":
        assert server.load(versions[number], number).status == 200
        assert server.promote("air-time", number).status == 200
    given = KEY if change == "/v1/keys" else {}
    path = root / file
    # What is put back is what it was, with all its times, as if nothing had been.
    kept, cut = path.with_suffix(".kept"), path.with_suffix(".cut")
    kept.hardlink_to(path)
    cut.write_bytes(path.read_bytes()[:-20])
    cut.replace(path)
    assert eventually(lambda: answers(server) and f"{path.name} is damaged" in server.log)
    refused = server.ask("POST", change, given)
    assert (refused.status, refused.json["code"]) == (503, "damaged")
    assert refused.json["error"].startswith(f"{path.name} is damaged at its beginning (Invalid")
    unknown = server.ask("POST", INFER, BODY, authorization="Bearer mm_000000000000_x")
    assert (unknown.status, unknown.json["code"]) == (401, "unknown_key")
    assert unreadable(server, path) == 1
    kept.replace(path)
    assert eventually(lambda: answers(server) and unreadable(server, path) == 0)
    assert server.ask("POST", change, given).status == 200
    assert "Traceback" not in server.log


def test_nothing_is_done_that_a_damaged_audit_log_would_not_tell(
    start: Any, tmp_path: Path
) -> None:
    server = start(tmp_path / "repository")
    assert server.ask("POST", "/v1/keys", KEY).status == 200
    path = tmp_path / "repository" / ".server" / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"\n")
    for method, place, given in (("POST", "/v1/keys", KEY), ("GET", "/v1/audit", None)):
        refused = server.ask(method, place, given)
        assert (refused.status, refused.json["code"]) == (503, "damaged")
        assert re.match(r"audit\.jsonl is damaged at .*entry.*: restore it", refused.json["error"])
    path.write_bytes(whole)
    assert server.ask("POST", "/v1/keys", KEY).status == 200
    assert len(server.ask("GET", "/v1/audit").json["entries"]) == 2
    assert "Traceback" not in server.log


def answers(server: Any) -> bool:
    """Whether a request is answered, for which the keys are looked at; it always is."""
    assert server.ask("POST", INFER, BODY).status == 200
    return True


def unreadable(server: Any, path: Path) -> float:
    now = samples(server.ask("GET", "/metrics").body.decode())
    return found(now, "modelmint_unreadable", file=path.name)


def test_a_worker_that_starts_waits_for_what_is_damaged(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1")
    server = start(root, "--workers", "2", environment=NO_STORE)
    assert server.load(versions["1"], "1").status == 200
    assert server.promote("air-time", "1").status == 200
    assert eventually(lambda: len(workers(root)) == 2)
    path = root / "state.json"
    whole = path.read_bytes()
    path.write_bytes(b"{}}")
    killed = min(workers(root))
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: "restore it; this worker starts after that" in server.log)
    assert server.ask("POST", INFER, BODY).status == 200
    path.write_bytes(whole)
    assert eventually(lambda: len(workers(root) - {killed}) == 2)
    assert server.promote("air-time", "1").status == 200
    # One that waits ends when it is told to.
    path.write_bytes(b"{}}")
    os.kill(min(workers(root)), signal.SIGKILL)
    assert eventually(lambda: server.log.count("this worker starts after that") == 2)
    assert server.stop() == 0


def test_a_file_that_cannot_be_written_is_logged_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "no" / "keys.json", tmp_path / "no" / "state.json"

    def write(path: Path) -> None:
        with written(path):
            path.write_bytes(b"{}")

    with caplog.at_level(logging.INFO, "modelmint.serving"):
        for file in (path, path, other, path):
            with pytest.raises(ProtocolError, match="cannot write .*: No such file") as caught:
                write(file)
            assert (caught.value.status, caught.value.code) == (503, "disk")
        path.parent.mkdir()
        write(path)
        write(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(ProtocolError, match="cannot write keys.json: Is a directory"):
            write(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} cannot be written: [Errno 2] No such file or directory: '{path}'",
        f"{other} cannot be written: [Errno 2] No such file or directory: '{other}'",
        f"{path} is written again",
        f"{path} cannot be written: [Errno 21] Is a directory: '{path}'",
    ]
