import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.journal import LOOKUPS, TOGETHER_NANOSECONDS, WAITING, Journal
from deployments.serving.protocol import ProtocolError
from tests.deployments.disks import fill, small_disk
from tests.deployments.serving.test_control import BODY, INFER, NO_STORE, eventually, placed


def test_what_was_noted_is_found_also_by_another_worker(tmp_path: Path) -> None:
    one, two = Journal(tmp_path), Journal(tmp_path)
    one.add(at=1.0, request="a", key="k", digest="1")
    two.add(at=2.0, request="a", key="k", digest="2")
    one.add(at=3.0, request='a"b', key='"request":"a"', digest="3")
    one.flush()
    assert [entry["digest"] for entry in two.find("a")] == ["1", "2"]
    assert [entry["digest"] for entry in two.find('a"b')] == ["3"]
    assert two.find("c") == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_the_oldest_files_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, file_bytes=1000, total_bytes=4000)
    for number in range(200):
        journal.add(at=float(number), request=f"r{number}", digest="0" * 64)
        journal.flush()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4200
    assert journal.find("r199")
    assert not journal.find("r0")


def written(folder: Path, name: int, worker: int, until: int, *requests: str) -> Path:
    """A file begun at `name` and last written to at `until`."""
    path = folder / f"{name:020d}-{worker}.jsonl"
    lines = [
        {"at": name + n, "request": one, "worker": worker, "key": f"k{worker}"}
        for n, one in enumerate(requests)
    ]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    os.utime(path, ns=(until, until))
    return path


def test_files_older_than_the_newest_that_has_it_are_not_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    minute = TOGETHER_NANOSECONDS
    older = written(tmp_path, 1 * minute, 1, 4 * minute, "a", "only here")
    written(tmp_path, 2 * minute, 2, 5 * minute, "a", "a")
    written(tmp_path, 6 * minute, 1, 9 * minute, "b", "a")
    written(tmp_path, 9 * minute, 3, 9 * minute, "b")
    assert [entry["worker"] for entry in journal.find("a")] == [2, 2, 1]
    assert [entry["worker"] for entry in journal.find("only here")] == [1]
    assert [entry["worker"] for entry in journal.find("b")] == [1, 3]
    # Whatever others do under the same id.
    assert [entry["worker"] for entry in journal.find("b", "k1")] == [1]
    assert [entry["worker"] for entry in journal.find("a", "k2")] == [2, 2]
    assert journal.find("a", "k3") == []
    # Half a line, as after a kill.
    older.write_bytes(older.read_bytes() + b'{"at":1,"request":"only here"')
    assert len(journal.find("only here")) == 1


def test_what_a_full_disk_does_not_take_is_found_and_written_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        one = Journal(disk / "requests", file_bytes=100_000)
        one.add(at=0.0, request="first")
        one.flush()
        filler = fill(disk)
        # The first line fits into what is left of the page, and a part of the second.
        for number in (1, 2, 3):
            one.add(at=float(number), request="a", more="x" * 2500)
        with pytest.raises(OSError, match="No space left on device"):
            one.flush()
        [path] = (disk / "requests").iterdir()
        assert [orjson.loads(line)["at"] for line in path.read_bytes().splitlines()] == [0, 1]
        for journal, ats in ((one, [1, 2, 3]), (Journal(disk / "requests"), [1])):
            assert [entry["at"] for entry in journal.find("a")] == ats
        one.add(at=4.0, request="a")
        filler.unlink()
        one.flush()
        assert [entry["at"] for entry in Journal(disk / "requests").find("a")] == [1, 2, 3, 4]
        assert [orjson.loads(line)["at"] for line in path.read_bytes().splitlines()] == [*range(5)]
        # A new file that cannot be begun.
        one.add(at=5.0, request="b", more="x" * 100_000)
        one.flush()
        filler = fill(disk)
        one.add(at=6.0, request="a")
        with pytest.raises(OSError, match="No space left on device"):
            one.flush()
        filler.unlink()
        one.flush()
        assert [entry["at"] for entry in Journal(disk / "requests").find("a")] == [1, 2, 3, 4, 6]


def test_beyond_a_bound_the_oldest_are_lost_and_that_is_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deployments.serving.journal.KEPT", 3)
    lost: list[int] = []
    monkeypatch.setattr("deployments.serving.metrics.not_journaled", lost.append)
    with small_disk(tmp_path / "disk", 1) as disk, caplog.at_level(logging.ERROR):
        journal = Journal(disk / "requests")
        filler = fill(disk)
        for number in range(8):
            journal.add(at=float(number), request="a")
        assert eventually(lambda: "No space left on device" in caplog.text)
        assert [entry["at"] for entry in journal.find("a")] == [5, 6, 7]
        assert sum(lost) == 5
        filler.unlink()
        journal.flush()
        assert [entry["at"] for entry in Journal(disk / "requests").find("a")] == [5, 6, 7]


def test_a_torn_line_before_another_hides_no_other(tmp_path: Path) -> None:
    line = orjson.dumps({"at": 1.0, "request": "a"})
    path = tmp_path / f"{1:020d}-1.jsonl"
    path.write_bytes(line + b"\n" + line[:-3] + line + b"\n" + line + b"\n")
    assert Journal(tmp_path).find("a") == [{"at": 1.0, "request": "a"}] * 2


def test_few_lookups_run_at_once_and_a_tenant_may_have_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, lock = threading.Event(), threading.Lock()
    running: list[int] = []
    most: list[int] = []
    find = Journal.find

    def held(self: Journal, request: str, key: str | None) -> Any:
        with lock:
            running.append(threading.get_ident())
            most.append(len(running))
        assert go.wait(30)
        with lock:
            running.pop()
        return find(self, request, key)

    monkeypatch.setattr(Journal, "find", held)

    async def story() -> None:
        journal = Journal(tmp_path)
        journal.add(at=1.0, request="a")
        mine = [
            asyncio.create_task(journal.look_up("a", ("mine", f"key-{number % 3}"), True))
            for number in range(WAITING)
        ]
        theirs = asyncio.create_task(journal.look_up("a", ("theirs", "key-0"), True))
        while len(running) < LOOKUPS:
            await asyncio.sleep(0.01)
        with pytest.raises(ProtocolError, match="lookups under way") as caught:
            await journal.look_up("a", ("mine", "key-9"), True)
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        go.set()
        answers = await asyncio.gather(
            theirs, *mine, journal.look_up("a", ("others", "key-0"), True)
        )
        assert answers == [[{"at": 1.0, "request": "a"}]] * (WAITING + 2)
        assert await journal.look_up("a", ("mine", "key-9"), True)

    asyncio.run(story())
    assert max(most) == LOOKUPS


def test_a_key_sees_which_version_answered_its_own_requests(
    start: Any, table: Any, tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    versions = placed(root, table, "1")
    server = start(root, environment=NO_STORE)
    server.load(versions["1"], "1")
    server.promote("air-time", "1")
    key = server.ask("POST", "/v1/keys", {"tenant": "acme", "scopes": ["predict:*"]}).json
    theirs = {"authorization": f"Bearer {key['key']}"}
    assert server.ask("POST", INFER, BODY, x_request_id="mine").status == 200
    assert server.ask("POST", INFER, {}, x_request_id="theirs", **theirs).status == 400
    [mine] = server.ask("GET", "/v1/requests/mine").json["requests"]
    assert mine["digest"] == versions["1"].digest
    assert (mine["line"], mine["version"], mine["status"]) == ("air-time", "1", 200)
    assert mine["ms"] > 0
    assert set(mine) == {"at", "request", "key", "line", "version", "digest", "status", "ms"}
    [other] = server.ask("GET", "/v1/requests/theirs").json["requests"]
    assert (other["key"], other["status"]) == (key["id"], 400)
    assert len(server.ask("GET", "/v1/requests/theirs", **theirs).json["requests"]) == 1
    assert server.ask("GET", "/v1/requests/mine", **theirs).json["requests"] == []
    # By the id in the body too, whoever answers: the connection itself or the application.
    away = {"cache-control": "no-cache", "accept-encoding": "identity"}
    for number, more in enumerate(({}, {"origin": "http://a.example"}, away)):
        body = orjson.dumps(orjson.loads(BODY) | {"id": f"inside-{number}"})
        answer = server.ask("POST", INFER, body, **more)
        assert answer.headers["x-request-id"] == answer.json["id"] == f"inside-{number}"
        [one] = server.ask("GET", f"/v1/requests/inside-{number}").json["requests"]
        assert one["status"] == 200
    refused = server.ask("POST", INFER, {"id": "inside-9", "inputs": []})
    assert (refused.status, refused.json["request_id"]) == (400, "inside-9")
    assert server.ask("GET", "/v1/requests/inside-9").json["requests"]
    # On disk soon, so that a killed worker loses little.
    files = root / ".server" / "requests"
    assert eventually(lambda: any(b"theirs" in path.read_bytes() for path in files.iterdir()))
