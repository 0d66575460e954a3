"""OpenAI's own client against the real server, and what its protocol refuses."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests.deployments.serving.letters import letters
from tests.deployments.serving.test_control import eventually

COMPLETE = "/v1/completions"


@pytest.fixture(scope="module")
def server(
    begun: Callable[..., Any], sealed: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server of `letters` 1 (default) and 2, which is surer, `slow-letters` and `verses`."""
    root = tmp_path_factory.mktemp("completions") / "repository"
    versions = [
        (sealed("letters", letters()), "1"),
        (sealed("letters", letters(0.999)), "2"),
        (sealed("slow-letters", letters(slow=True)), "1"),
        (sealed("verses", letters()), "1"),
    ]
    with begun(root) as running:
        for version, number in versions:
            version.place(root, number)
            assert running.load(version, number).status == 200
        for line in ("letters", "slow-letters", "verses"):
            assert running.promote(line, "1").status == 200
        yield running


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with made(server, server.key) as found:
        yield found


def made(server: Any, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, timeout=30
    )


def test_a_prompt_is_completed(client: openai.OpenAI, server: Any) -> None:
    found = client.completions.create(model="letters", prompt="ab", max_tokens=6, temperature=0)
    [choice] = found.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("cdabcd", "length", 0)
    assert (found.object, found.model) == ("text_completion", "letters@1")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, 6)
    assert found.usage.total_tokens == 8
    assert found.system_fingerprint == server.ask("GET", "/v1/lines/letters").json["digest"]
    # The request id leads to the version, as everywhere.
    path = f"/v1/requests/{found.id}"
    assert eventually(lambda: bool(server.ask("GET", path).json["requests"]))
    [entry] = server.ask("GET", path).json["requests"]
    assert (f"cmpl-{entry['request']}", entry["version"]) == (found.id, "1")
    # Who chose an id with that beginning is found by it too, and by the completion's.
    chosen = client.completions.create(
        model="letters", prompt="ab", max_tokens=1, extra_headers={"x-request-id": "cmpl-mine"}
    )
    assert chosen.id == "cmpl-cmpl-mine"
    assert eventually(lambda: bool(server.ask("GET", "/v1/requests/cmpl-mine").json["requests"]))
    for name in (chosen.id, "cmpl-mine"):
        [entry] = server.ask("GET", f"/v1/requests/{name}").json["requests"]
        assert entry["request"] == "cmpl-mine"


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "slow-letters", "prompt": ["a", "bc"], "n": 2, "seed": 5, "max_tokens": 30,
        "logprobs": 2,
    }  # fmt: skip
    whole = client.completions.create(**asked)
    texts, tokens, ends = [""] * 4, [list[str]() for _ in range(4)], [""] * 4
    parts = 0
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        assert chunk.system_fingerprint == whole.system_fingerprint
        if not chunk.choices:
            assert chunk.usage == whole.usage
        for choice in chunk.choices:
            assert chunk.usage is None
            texts[choice.index] += choice.text
            assert choice.logprobs is not None
            tokens[choice.index] += choice.logprobs.tokens or []
            ends[choice.index] = choice.finish_reason or ""
            parts += 1
    assert parts > len(texts), "every text came in one piece"
    assert texts == [choice.text for choice in whole.choices]
    assert ends == ["length"] * 4
    assert ["".join(one) for one in tokens] == texts
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 120)
    assert len(set(texts)) == 4


def test_the_same_seed_and_fingerprint_write_the_same(client: openai.OpenAI, server: Any) -> None:
    def text(**more: Any) -> str:
        found = client.completions.create(
            model="letters", prompt="a", max_tokens=80, temperature=2, **more
        )
        return found.choices[0].text

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(seed=-1) == text(seed=-1)
    # The friendly route writes it too.
    asked = {"prompt": "a", "tokens": 80, "temperature": 2, "seed": 1}
    friendly = server.ask("POST", "/v1/lines/letters/predict", asked)
    assert friendly.json["predictions"][0]["text"] == text(seed=1)
    # Without a seed each is another, and the header tells which.
    drawn = client.completions.with_raw_response.create(
        model="letters", prompt="a", max_tokens=80, temperature=2
    )
    again = text(seed=int(drawn.headers["modelmint-seed"]))
    assert again == drawn.parse().choices[0].text != text()
    assert drawn.headers["modelmint-version"] == "1"
    assert drawn.headers["x-request-id"]


def test_versions_have_names_of_their_own(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 40, "seed": 0}
    assert client.completions.create(model="letters@2", **asked).model == "letters@2"
    assert client.completions.create(model="letters@2", **asked).choices[0].text == "bcda" * 10
    assert client.completions.create(model="letters@1", **asked).choices[0].text != "bcda" * 10
    listed = {one.id: one for one in client.models.list()}
    assert set(listed) == {
        "letters", "letters@1", "letters@2", "slow-letters", "slow-letters@1", "verses", "verses@1",
    }  # fmt: skip
    found = client.models.retrieve("letters@2")
    assert found == listed["letters@2"]
    assert (found.object, found.owned_by) == ("model", "modelmint")
    assert found.created == 1767225600  # 2026-01-01T00:00:00Z, as its provenance says
    for absent in ("letters@9", "nothing", "letters@", "../letters"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(absent)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=absent, prompt="a")


def test_what_the_readme_shows_works(server: Any) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    [script] = re.findall(r"```python\n(import os\nfrom openai .*?)```", readme, re.DOTALL)
    [command] = re.findall(
        r"^curl (?:(?!\n```).)*?verses/predict$", readme, re.DOTALL | re.MULTILINE
    )
    here = {
        "MODELMINT_ENDPOINT": f"http://127.0.0.1:{server.port}", "MODELMINT_API_KEY": server.key,
    }  # fmt: skip

    def shown(*words: str) -> str:
        return subprocess.run(
            words, env=os.environ | here, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert set(shown(sys.executable, "-c", script)) == set("abcd")
    assert shown("sh", "-c", command).startswith("event: piece\ndata: ")


def test_a_stop_ends_the_text_and_its_tokens(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="letters", prompt="a", temperature=0, max_tokens=50, stop=["da"], logprobs=1,
        echo=False,
    )  # fmt: skip
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == ("bc", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["b", "c"]
    assert choice.logprobs.text_offset == [0, 1]
    assert choice.logprobs.token_logprobs == pytest.approx([-0.3566749] * 2)
    assert choice.logprobs.top_logprobs is not None
    assert list(choice.logprobs.top_logprobs[0]) == ["b"]
    echoed = client.completions.create(model="letters", prompt="ab", temperature=0, echo=True)
    assert echoed.choices[0].text == "ab" + "cdab" * 4


def test_a_key_writes_what_its_scopes_and_quota_let_it(server: Any) -> None:
    key = {"tenant": "a", "scopes": ["predict:letters"], "limits": {"daily_rows": 40}}
    told = server.ask("POST", "/v1/keys", key).json
    identity, secret = told["id"], told["key"]
    with made(server, secret) as client:
        client.completions.create(model="letters", prompt="ab", max_tokens=20, temperature=0)
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope"):
            client.completions.create(model="slow-letters", prompt="ab")
        assert list(client.models.list()) == []
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="letters", prompt="ab", max_tokens=20)
        assert (caught.value.code, caught.value.type) == ("quota_exceeded", "insufficient_quota")
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert caught.value.request_id
    usage = [one for one in server.ask("GET", "/v1/usage").json["usage"] if one["key"] == identity]
    counted = {one["line"]: (one["requests"], one["refused"], one["rows"]) for one in usage}
    # What it may not ask was read before that was known, and costs its bytes.
    assert counted == {"letters": (1, 1, 22), "*": (0, 0, 0)}
    server.ask("POST", f"/v1/keys/{identity}/revoke")
    with made(server, secret) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "1 to 16 texts"),
        ({"prompt": ["a"] * 9, "n": 2}, "1 to 16 texts"),
        ({"prompt": "a" * 10_001}, "over 10,000 characters"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4001}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "echo and logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"style": "grand"}, "style"),
        ({"model": 7}, "model"),
    ],
)
def test_what_is_not_understood_is_refused(
    server: Any, change: dict[str, Any], reason: str
) -> None:
    answer = server.ask("POST", COMPLETE, {"model": "letters", "prompt": "a"} | change)
    assert answer.status == 400
    error = answer.json["error"]
    assert reason in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"", 400),
        ({"content-type": "application/json"}, b'{"model": "\xff"}', 400),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/json", "authorization": ""}, b"{}", 401),
    ],
)
def test_every_error_has_the_shape_openai_gives_it(
    server: Any, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = server.ask("POST", COMPLETE, body, **headers)
    assert answer.status == status
    assert re.match("[A-Za-z]", answer.json["error"]["message"])
    assert answer.headers["x-request-id"]


def test_a_deadline_in_a_stream_is_an_error_of_the_client(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="slow-letters", prompt="a", max_tokens=4000, stream=True,
        extra_headers={"modelmint-timeout-ms": "300"},
    )  # fmt: skip
    with pytest.raises(openai.APIError, match="the deadline passed"):
        for _ in stream:
            pass


def test_neutral_settings_and_ours_are_taken(server: Any) -> None:
    asked = {
        "model": "letters", "prompt": "a", "max_tokens": 4, "frequency_penalty": 0,
        "presence_penalty": 0.0, "logit_bias": {}, "best_of": 1, "user": "u", "suffix": None,
        "stop": None, "seed": None, "top_k": 1,
    }  # fmt: skip
    answer = server.ask("POST", COMPLETE, orjson.dumps(asked), content_type="application/json")
    assert answer.json["choices"][0]["text"] == "bcda"


def test_a_canary_answers_its_share_of_completions(server: Any, client: openai.OpenAI) -> None:
    path = "/v1/lines/letters/canary"
    assert server.ask("POST", path, {"version": "2", "percent": 50}).status == 200
    try:
        models = {
            client.completions.create(
                model="letters", prompt="a", extra_headers={"x-request-id": f"c-{number}"}
            ).model
            for number in range(20)
        }
        assert models == {"letters@1", "letters@2"}
        compared = server.ask("GET", path).json["canary"]["comparison"]
        assert compared["canary"]["requests"] + compared["production"]["requests"] == 20
    finally:
        server.ask("POST", f"{path}/end", {})
