"""A model server whose disk is full: it answers, refuses what it could not keep, and goes on."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from deployments.serving.disk import ROOM
from tests.deployments.disks import fill, small_disk
from tests.deployments.serving.test_control import (
    BODY,
    INFER,
    NO_STORE,
    ROLLBACK,
    eventually,
    placed,
)

PROMOTE = "/v1/lines/air-time/promote"
UNWRITTEN = r"cannot write (audit\.jsonl|state\.json|keys\.json): No space left on device"
KEY = {"tenant": "acme", "scopes": ["predict:*"]}


def test_requests_are_answered_and_what_cannot_be_written_is_refused(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"

    def workers() -> set[int]:
        return {int(path.name.partition("-")[0]) for path in root.glob(".workers/*.json")}

    with small_disk(root, 16) as disk:
        versions = placed(root, table, "1", "2", "3")
        server = start(root, "--workers", "2", environment=NO_STORE)
        for number in "12":
            assert server.load(versions[number], number).status == 200
            assert server.promote("air-time", number).status == 200
        assert eventually(lambda: len(workers()) == 2)
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
        killed = min(workers())
        os.kill(killed, signal.SIGKILL)
        assert eventually(lambda: "this worker starts once there is room" in server.log)
        assert server.ask("POST", INFER, BODY, x_request_id="last").status == 200
        filler.unlink()
        assert eventually(lambda: len(workers() - {killed}) == 2)
        told = server.ask("POST", ROLLBACK, {})
        assert (told.status, told.json["version"]) == (200, "1")
        # Whichever worker is asked.
        assert eventually(lambda: server.ask("GET", "/v1/requests/last").json["requests"] != [])
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_no_server_starts_on_a_full_disk(start: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    with small_disk(root, 4) as disk:
        filler = fill(disk, ROOM // 2)
        with pytest.raises(RuntimeError, match=f"the disk of {root}.* is full: make room"):
            start(root)
        os.truncate(filler, 0)
        assert start(root).stop() == 0
