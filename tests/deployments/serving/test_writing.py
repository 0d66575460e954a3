"""A language model behind the real server: prompts continued, and its steps one by one."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from deployments.serving.writing import MOST_OF_TENANT
from tests.deployments.serving.letters import VOCABULARY, letters
from tests.deployments.serving.test_control import eventually

PREDICT, SLOW = "/v1/lines/letters/predict", "/v1/lines/slow-letters/predict"


@pytest.fixture(scope="module")
def server(
    begun: Callable[..., Any], sealed: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server of the lines `letters`, and `slow-letters`, which takes milliseconds a letter."""
    root = tmp_path_factory.mktemp("writing") / "repository"
    with begun(root) as running:
        for line in ("letters", "slow-letters"):
            version = sealed(line, letters(slow=line == "slow-letters"))
            version.place(root, "1")
            assert running.load(version, "1").status == 200
            assert running.promote(line, "1").status == 200
        yield running


def test_a_prompt_is_continued(server: Any) -> None:
    answer = server.ask("POST", PREDICT, b"ab", content_type="text/plain")
    assert answer.status == 200
    [written] = answer.json["predictions"]
    assert len(written["text"]) == written["characters"] == 200
    assert set(written["text"]) == set("abcd")
    asked = {"prompt": "ab", "characters": 6, "temperature": 0}
    answer = server.ask("POST", PREDICT, asked)
    assert answer.json["predictions"][0]["text"] == "cdabcd"


def test_a_seed_writes_the_same_again_and_another_something_else(server: Any) -> None:
    def text(seed: int) -> str:
        asked = {"prompt": "a", "characters": 80, "temperature": 2, "seed": seed}
        found: str = server.ask("POST", PREDICT, asked).json["predictions"][0]["text"]
        return found

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b'{"prompt": "a", "temperature": 99}', "application/json", "temperature"),
        (b"[1]", "application/json", "the request must be"),
        (b"\xff", "text/plain", "not UTF-8"),
        (b"\x89PNG", "image/png", "neither text/plain nor application/json"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    server: Any, body: bytes, content_type: str, reason: str
) -> None:
    answer = server.ask("POST", PREDICT, body, content_type=content_type)
    assert answer.status == 400
    assert reason in answer.json["error"]


def test_a_step_takes_the_state_and_gives_it_back(server: Any) -> None:
    described = server.ask("GET", "/v2/models/letters").json
    assert [o["name"] for o in described["outputs"]] == ["log_probabilities", "next_state"]
    body = {
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [3, 4]},
            {"name": "state", "datatype": "FP32", "shape": [1, 1], "data": [5]},
        ]
    }
    outputs = server.ask("POST", "/v2/models/letters/infer", body).json["outputs"]
    found = {o["name"]: o for o in outputs}
    assert found["next_state"]["data"] == [6.0]
    assert found["log_probabilities"]["shape"] == [1, 2, VOCABULARY.size]


def test_tokens_read_and_written_are_charged(server: Any) -> None:
    before = rows(server)
    asked = {"prompt": "ab", "characters": 50, "temperature": 0, "stop": ["abc"]}
    [answer] = server.ask("POST", PREDICT, asked).json["predictions"]
    assert (answer["text"], answer["finish_reason"]) == ("cd", "stop")
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (2, 5)
    assert rows(server) == before + 7
    assert server.ask("POST", PREDICT, {"prompt": 1}).status == 400
    assert rows(server) == before + 7


def test_a_quota_is_asked_before_anything_is_written(server: Any) -> None:
    limits = {"daily_rows": 24}
    key = {"tenant": "a", "scopes": ["predict:letters"], "limits": limits}
    made = server.ask("POST", "/v1/keys", key).json["key"]
    bearer = {"authorization": f"Bearer {made}"}
    asked = {"prompt": "a", "characters": 30, "stream": True}
    refused = server.ask("POST", PREDICT, asked, **bearer)
    assert (refused.status, refused.json["code"]) == (429, "quota_exceeded")
    # What was not written is given back: three times 15 tokens were too many.
    for _ in range(3):
        asked = {"prompt": "a", "characters": 14, "temperature": 0, "stop": ["d"]}
        assert server.ask("POST", PREDICT, asked, **bearer).status == 200


@pytest.mark.parametrize("how", ["field", "header"])
def test_a_text_is_streamed_while_it_is_written(server: Any, how: str) -> None:
    asked: dict[str, Any] = {"prompt": "ab", "characters": 60, "seed": 3}
    whole = server.ask("POST", SLOW, asked).json
    if how == "field":
        found = server.ask("POST", SLOW, asked | {"stream": True})
    else:
        found = server.ask("POST", SLOW, asked, accept="text/event-stream")
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["modelmint-digest"] == whole["digest"]
    assert found.headers["x-request-id"]
    *pieces, (last, answer) = events(found.body)
    assert {name for name, _ in pieces} == {"piece"}
    assert len(pieces) > 1
    assert "".join(data["text"] for _, data in pieces) == whole["predictions"][0]["text"]
    assert (last, answer) == ("answer", whole)


def test_writing_ends_when_the_caller_leaves(server: Any) -> None:
    before = rows(server, "slow-letters")
    asked = {"prompt": "a", "characters": 4000, "stream": True}
    connection = server.connect()
    connection.request(
        "POST", SLOW, orjson.dumps(asked), server.bearer | {"content-type": "application/json"}
    )
    response = connection.getresponse()
    assert response.readline() == b"event: piece\n"
    # All of it is charged until it is known how much is written.
    assert rows(server, "slow-letters") == before + 4001
    response.close()
    connection.close()
    assert eventually(lambda: rows(server, "slow-letters") < before + 2000)
    written = rows(server, "slow-letters")
    assert written > before
    # A caller who waits for the whole answer may leave too.
    connection = server.connect()
    connection.request(
        "POST", SLOW, orjson.dumps(asked | {"stream": False}),
        server.bearer | {"content-type": "application/json"},
    )  # fmt: skip
    assert eventually(lambda: rows(server, "slow-letters") == written + 4001)
    connection.close()
    assert eventually(lambda: rows(server, "slow-letters") < written + 2000)


def test_a_deadline_ends_the_answer_or_the_stream(server: Any) -> None:
    due = {"modelmint-timeout-ms": "300"}
    asked = {"prompt": "a", "characters": 4000}
    answer = server.ask("POST", SLOW, asked, **due)
    assert (answer.status, answer.json["code"]) == (504, "deadline")
    found = server.ask("POST", SLOW, asked | {"stream": True}, **due, x_request_id="of-mine")
    assert found.status == 200
    name, data = events(found.body)[-1]
    assert (name, data["code"], data["request_id"]) == ("error", "deadline", "of-mine")


def test_others_have_their_turn_while_texts_are_written(server: Any) -> None:
    asked = {"prompt": "a", "characters": 4000, "stream": True}
    headers = server.bearer | {"content-type": "application/json"}
    connections = [server.connect() for _ in range(8)]
    try:
        responses = []
        for connection in connections:
            connection.request("POST", SLOW, orjson.dumps(asked), headers)
            responses.append(connection.getresponse())
        # Each of the eight writes, and a ninth one comes to its end long before them.
        for response in responses:
            assert response.readline() == b"event: piece\n"
        short = server.ask("POST", SLOW, {"prompt": "a", "characters": 5})
        assert short.json["predictions"][0]["completion_tokens"] == 5
        assert server.ask("POST", PREDICT, {"prompt": "a"}).status == 200
        assert not any(response.closed for response in responses)
    finally:
        for connection in connections:
            connection.close()


def test_a_tenant_cannot_write_ever_more_texts_with_ever_more_keys(server: Any) -> None:
    bearers = []
    for tenant in ("a", "a", "b"):
        made = server.ask("POST", "/v1/keys", {"tenant": tenant, "scopes": ["predict:*"]})
        bearers.append({"authorization": f"Bearer {made.json['key']}"})
    first, second, other = bearers
    asked = orjson.dumps({"prompt": "a", "characters": 4000, "stream": True})
    connections = [server.connect() for _ in range(MOST_OF_TENANT)]
    try:
        assert eventually(lambda: begin(server).status == 200)  # those before have ended
        for number, connection in enumerate(connections):
            bearer = first if number % 2 else second
            headers = bearer | {"content-type": "application/json"}
            connection.request("POST", SLOW, asked, headers)
            assert connection.getresponse().status == 200
        for bearer in (first, second):
            refused = begin(server, **bearer)
            assert (refused.status, refused.json["code"]) == (429, "overloaded")
            assert refused.headers["retry-after"]
        assert begin(server, **other).status == 200
    finally:
        for connection in connections:
            connection.close()


def begin(server: Any, **headers: str) -> Any:
    return server.ask("POST", SLOW, {"prompt": "a", "characters": 1}, **headers)


def rows(server: Any, line: str = "letters") -> int:
    """Rows charged for the line so far."""
    found = server.ask("GET", "/v1/usage").json["usage"]
    return sum(entry["rows"] for entry in found if entry["line"] == line)


def events(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = []
    for part in body.decode().split("\n\n")[:-1]:
        name, data = part.split("\n")
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found
