"""Keys, limits, usage and audit log, by the classes and through a real server."""

import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployments.serving.audit import AUDIT_FILE, BLOCK, START, Audit, check
from deployments.serving.disk import Damaged
from deployments.serving.keys import EVERYTHING, KEYS_FILE, Keys
from deployments.serving.ledger import DAY
from deployments.serving.protocol import ProtocolError
from models.digests import IntegrityError

INFER = "/v2/models/air-time/infer"
PREDICT = "/v1/lines/air-time/predict"
BODY = {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}


def code(act: Any, *args: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        act(*args)
    return caught.value.code


def test_a_key_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key, token = keys.create("acme", ("predict:digits",))
    assert token.encode() not in (tmp_path / KEYS_FILE).read_bytes()
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600
    assert keys.authenticate(f"Bearer {token}") == key
    assert key.allows("predict", "digits")
    for verb, line in (("predict", "flights"), ("read", "digits"), ("predict", "*")):
        assert not key.allows(verb, line)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "no_key"),
        ("", "no_key"),
        ("Basic YTpi", "no_key"),
        ("Bearer", "no_key"),
        ("Bearer x", "unknown_key"),
        ("Bearer mm__", "unknown_key"),
        ("Bearer mm_000000000000_x", "unknown_key"),
        ("Bearer " + "mm_" * 5000, "unknown_key"),
    ],
)
def test_no_key_is_refused(tmp_path: Path, header: str | None, expected: str) -> None:
    assert code(Keys(tmp_path).authenticate, header) == expected


def test_a_secret_that_is_not_the_keys_is_refused(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    _, token = keys.create("acme", EVERYTHING)
    for wrong in (token[:-1], token + "x", token[:-1] + chr(ord(token[-1]) ^ 1), token.upper()):
        assert code(keys.authenticate, f"Bearer {wrong}") == "unknown_key"


def test_rotation_keeps_the_id_and_the_old_secret_for_its_grace(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key, old = keys.create("acme", EVERYTHING)
    rotated, new = keys.rotate(key.id, 60, None)
    assert rotated.id == key.id
    assert keys.authenticate(f"Bearer {old}").id == keys.authenticate(f"Bearer {new}").id
    keys.rotate(key.id, 0, None)
    for token in (old, new):
        assert code(keys.authenticate, f"Bearer {token}") == "unknown_key"


def test_a_secret_that_was_let_in_ends_when_it_is_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("deployments.serving.keys.time.time", lambda: now[0])
    keys = Keys(tmp_path)
    key, old = keys.create("acme", EVERYTHING)
    keys.rotate(key.id, 60, 1120.0)
    _, new = keys.rotate(key.id, 60, None)
    ending = keys.create("acme", EVERYTHING, expires=1010.0)[1]
    assert code(keys.authenticate, f"Bearer {old}") == "unknown_key"
    _, newest = keys.rotate(key.id, 60, None)
    for token in (new, newest, ending) * 2:
        assert keys.authenticate(f"Bearer {token}")
    now[0] = 1061.0
    assert code(keys.authenticate, f"Bearer {new}") == "unknown_key"
    assert code(keys.authenticate, f"Bearer {ending}") == "expired_key"
    assert keys.authenticate(f"Bearer {newest}").id == key.id
    now[0] = 1121.0
    assert code(keys.authenticate, f"Bearer {newest}") == "expired_key"
    # Rotated as it is it would still be out: that is said, and the secret that was shown stays.
    assert code(keys.rotate, key.id, 0, None) == code(keys.rotate, key.id, 0, 1121.0) == "conflict"
    assert code(keys.authenticate, f"Bearer {newest}") == "expired_key"
    _, last = keys.rotate(key.id, 0, 1200.0)
    assert keys.authenticate(f"Bearer {last}").expires == 1200.0


def test_only_so_many_headers_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.serving.keys.MOST_SHOWN", 3)
    keys = Keys(tmp_path)
    key, token = keys.create("acme", EVERYTHING)
    for spaces in range(10):
        assert keys.authenticate(f"Bearer {' ' * spaces}{token}").id == key.id
        assert len(keys._shown) <= 3


def test_a_key_expires_and_is_revoked_for_every_worker(tmp_path: Path) -> None:
    keys, other = Keys(tmp_path), Keys(tmp_path)
    _, late = keys.create("acme", EVERYTHING, expires=1.0)
    key, token = keys.create("acme", EVERYTHING)
    other.refresh()
    assert code(other.authenticate, f"Bearer {late}") == "expired_key"
    assert other.authenticate(f"Bearer {token}").id == key.id
    keys.revoke(key.id)
    other.refresh()
    assert code(other.authenticate, f"Bearer {token}") == "revoked_key"
    assert code(keys.rotate, key.id, 0, None) == "conflict"


def test_the_first_key_is_made_once_and_never_comes_back(tmp_path: Path) -> None:
    keys, file = Keys(tmp_path / "private"), tmp_path / "first"
    keys.first(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text()
    key = keys.authenticate(f"Bearer {token}")
    assert set(key.scopes) == set(EVERYTHING)
    keys.revoke(key.id)
    keys.first(file)
    assert code(keys.authenticate, f"Bearer {token}") == "revoked_key"
    # A key that an operator brings, such as a mounted secret.
    elsewhere = Keys(tmp_path / "elsewhere")
    elsewhere.first(file)
    assert elsewhere.authenticate(f"Bearer {token}").id == key.id


def test_the_audit_log_proves_itself(tmp_path: Path) -> None:
    audit, other = Audit(tmp_path), Audit(tmp_path)
    assert check([]) == (0, START)
    for number in range(6):
        (audit, other)[number % 2].append("k", "promote", "digits", "r", version=str(number))
    entries = audit.read(0, 100)
    count, head = check(entries)
    assert (count, len(audit.read(4, 100))) == (6, 2)
    altered = [dict(one) for one in entries]
    altered[2]["actor"] = "somebody else"
    moved = [entries[1], entries[0], *entries[2:]]
    for broken in (altered, moved, entries[1:], [*entries[:3], *entries[4:]], [{}]):
        with pytest.raises(IntegrityError):
            check(broken)
    with pytest.raises(IntegrityError, match="cut off"):
        check(entries[:-1], head)


def test_a_torn_entry_is_dropped_and_a_damaged_one_is_not_built_upon(tmp_path: Path) -> None:
    audit, path = Audit(tmp_path), tmp_path / AUDIT_FILE
    audit.append("k", "promote", "digits", "r")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence": 2, "at"')
    audit.append("k", "unload", "digits", "r")
    assert check(audit.read(0, 10))[0] == 2
    path.write_bytes(whole.replace(b"promote", b"\xff", 1))
    for damaged in (
        lambda: audit.append("k", "unload", "digits", "r"),
        lambda: audit.read(0, 10),
    ):
        with pytest.raises(
            Damaged, match="audit.jsonl is damaged at .*entry.*: restore it"
        ) as caught:
            damaged()
        assert (caught.value.status, caught.value.code) == (503, "damaged")
    assert audit.read(1, 10) == []


def test_an_entry_of_any_length_is_built_upon(tmp_path: Path) -> None:
    audit, path = Audit(tmp_path), tmp_path / AUDIT_FILE
    for length in (1, 70_000, BLOCK, 3 * BLOCK, 1):
        audit.append("k", "promote", "digits", "r", version="9" * length)
    with path.open("ab") as stream:
        stream.write(b'{"torn": "' + b"9" * 2 * BLOCK)
    audit.append("k", "unload", "digits", "r")
    assert check(audit.read(0, 10))[0] == 6
    path.write_bytes(b"9" * 2 * BLOCK)
    assert audit.append("k", "unload", "digits", "r").sequence == 1


def create(server: Any, *scopes: str, **more: Any) -> dict[str, Any]:
    answer = server.ask("POST", "/v1/keys", {"tenant": "acme", "scopes": list(scopes), **more})
    assert answer.status == 200, answer.body
    found = answer.json
    assert answer.headers["cache-control"] == "no-store"
    assert {"key", "id", "scopes", "expires"} <= set(found)
    return dict(found, bearer={"authorization": f"Bearer {found['key']}"})


def test_everything_but_health_takes_a_key(shared: Any) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert shared.ask("GET", path, authorization="").status == 200
    for method, path in (
        ("GET", "/"), ("GET", "/v2"), ("POST", INFER), ("POST", PREDICT), ("GET", "/nothing"),
        ("POST", "/v1/lines/air-time/promote"), ("GET", "/v1/keys"), ("GET", "/v2/health/live/"),
    ):  # fmt: skip
        answer = shared.ask(method, path, authorization="Bearer mm_000000000000_x")
        assert (answer.status, answer.json["code"]) == (401, "unknown_key")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json["request_id"] == answer.headers["x-request-id"]


def test_scopes_bound_verbs_and_lines(shared: Any) -> None:
    key = create(shared, "predict:air-time", "read:air-time")
    bearer = key["bearer"]
    assert shared.ask("POST", INFER, BODY, **bearer).status == 200
    assert shared.ask("GET", "/v2/models/air-time", **bearer).status == 200
    assert list(shared.ask("GET", "/", **bearer).json["lines"]) == ["air-time"]
    index = shared.ask("POST", "/v2/repository/index", {}, **bearer).json
    assert {one["name"] for one in index} == {"air-time"}
    for method, path in (
        ("POST", "/v1/lines/clothes/predict"), ("POST", "/v2/models/unheard-of/infer"),
        ("GET", "/v2/models/clothes"), ("POST", "/v1/lines/air-time/promote"),
        ("POST", "/v2/repository/models/air-time/load"), ("GET", "/v1/keys"), ("GET", "/v1/audit"),
        ("POST", "/v1/keys"), ("POST", f"/v1/keys/{key['id']}/revoke"),
    ):  # fmt: skip
        answer = shared.ask(method, path, {} if method == "POST" else None, **bearer)
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), path


def test_a_revoked_key_is_out_at_once(shared: Any) -> None:
    key = create(shared, "predict:*")
    assert shared.ask("POST", INFER, BODY, **key["bearer"]).status == 200
    assert shared.ask("POST", f"/v1/keys/{key['id']}/revoke", {}).status == 200
    assert shared.ask("POST", INFER, BODY, **key["bearer"]).json["code"] == "revoked_key"


def test_usage_counts_rows_and_bytes_and_quotas_refuse(shared: Any) -> None:
    key = create(shared, "predict:*", "read:*", limits={"daily_rows": 3})
    bearer = key["bearer"]
    answer = shared.ask("POST", INFER, BODY, **bearer)
    csv = b"hour,distance\n4,3\n0,1\n"
    # What is not computed is not counted as a row, but what cannot be read costs its bytes.
    nothing = b'{"distance": null, "hour": null}'
    assert shared.ask("POST", PREDICT, b"{", **bearer).status == 400
    predicted = shared.ask("POST", PREDICT, csv, content_type="text/csv", **bearer)
    refused = shared.ask("POST", INFER, BODY, **bearer)
    assert (refused.status, refused.json["code"]) == (429, "quota_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= DAY
    assert shared.ask("POST", PREDICT, nothing, **bearer).status == 429
    [used] = shared.ask("GET", "/v1/usage", **bearer).json["usage"]
    assert (used["requests"], used["rows"], used["refused"]) == (2, 3, 2)
    assert used["bytes_in"] == len(orjson.dumps(BODY)) + len(csv) + len(b"{")
    assert used["bytes_out"] == len(answer.body) + len(predicted.body)
    assert used["tenant"] == "acme"
    everyone = shared.ask("GET", "/v1/usage?days=1").json["usage"]
    assert key["id"] in {one["key"] for one in everyone}


def test_a_rate_limit_says_when_to_come_back(shared: Any) -> None:
    key = create(shared, "read:*", limits={"rate": 0.001})
    assert shared.ask("GET", "/v2", **key["bearer"]).status == 200
    answer = shared.ask("GET", "/v2", **key["bearer"])
    assert (answer.status, answer.json["code"]) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 900


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tenant": "a"},
        {"tenant": "a", "scopes": []},
        {"tenant": "a", "scopes": ["fly:*"]},
        {"tenant": "a", "scopes": [1]},
        {"tenant": "../a", "scopes": ["read:*"]},
        {"tenant": "a", "scopes": ["read:*"], "expires": "soon"},
        {"tenant": "a", "scopes": ["read:*"], "expires": 3},
        {"tenant": "a", "scopes": ["read:*"], "expires": "0001-01-01T00:00:00+14:00"},
        {"tenant": "a", "scopes": ["read:*"], "expires": "9999-12-31T23:59:59-14:00"},
        {"tenant": "a", "scopes": ["read:*"], "expires": "9999-12-31T23:59:59.999999"},
        {"tenant": "a", "scopes": ["read:*"], "limits": {"rate": -1}},
        {"tenant": "a", "scopes": ["read:*"], "limits": {"rate": 1e-310}},
        {"tenant": "a", "scopes": ["read:*"], "limits": {"rate": 1.1e-5}},
        {"tenant": "a", "scopes": ["read:*"], "limits": []},
        {"tenant": "a", "scopes": ["read:*"], "more": 1},
    ],
)
def test_a_key_with_wrong_fields_is_refused(shared: Any, fields: dict[str, Any]) -> None:
    answer = shared.ask("POST", "/v1/keys", fields)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def test_control_actions_are_in_the_audit_log(start: Any, table: Any, tmp_path: Path) -> None:
    root, version = tmp_path / "repository", table()
    version.place(root, "1")
    server = start(root)
    server.load(version, "1")
    server.promote("air-time", "1")
    key = create(server, "read:*", expires="2030-01-01")
    assert key["expires"].startswith("2030-01-01")
    rotated = server.ask("POST", f"/v1/keys/{key['id']}/rotate", {"grace": 0}).json
    assert rotated["id"] == key["id"]
    assert server.ask("GET", "/v2", **key["bearer"]).status == 401
    entries = server.ask("GET", "/v1/audit").json["entries"]
    assert check(entries)[0] == 4
    assert [one["action"] for one in entries] == ["load", "promote", "create key", "rotate key"]
    written = (root / ".server" / AUDIT_FILE).read_text()
    assert key["key"] not in written
    assert server.stop() == 0
    server = start(root)
    assert server.ask("GET", "/v2/models/air-time/ready").status == 200
    server.promote("air-time", "1")
    assert check(server.ask("GET", "/v1/audit").json["entries"])[0] == 5
