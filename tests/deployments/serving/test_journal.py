from pathlib import Path
from typing import Any

from deployments.serving.journal import Journal
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
    # On disk soon, so that a killed worker loses little.
    files = root / ".server" / "requests"
    assert eventually(lambda: any(b"theirs" in path.read_bytes() for path in files.iterdir()))
