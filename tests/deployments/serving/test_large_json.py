"""Much JSON is read elsewhere, or not at all: while it is read, nothing else runs in a process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from deployments.serving.app import PROMPT_BYTES
from deployments.serving.http import INLINE_BYTES
from deployments.serving.openai_protocol import parse
from deployments.serving.protocol import ProtocolError

INFER, CANARY = "/v2/models/air-time/infer", "/v1/lines/air-time/canary"
ROW = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
GOOD = {"inputs": [ROW]}
LARGE = {"content_type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, begun: Any, table: Any) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("large") / "repository"
    with begun(root) as server:
        for number, version in (("1", table()), ("2", table(10.0))):
            version.place(root, number)
            assert server.load(version, number).status == 200
        assert server.promote("air-time", "1").status == 200
        yield server
        assert "Traceback" not in server.log


def large(**changes: Any) -> bytes:
    return orjson.dumps(GOOD | changes) + b" " * INLINE_BYTES


@contextmanager
def stopped(server: Any) -> Iterator[None]:
    """Nothing is decoded meanwhile."""
    assert (
        server.ask("POST", "/v1/lines/air-time/predict", {"distance": 3, "hour": 4}).status == 200
    )
    decoders = server.decoders()
    for decoder in decoders:
        decoder.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for decoder in decoders:
            if decoder.is_running():
                decoder.send_signal(signal.SIGCONT)


def test_a_worker_reads_none_of_it_and_answers_others(server: Any) -> None:
    with stopped(server):
        late = server.ask("POST", INFER, large(), modelmint_timeout_ms="300", **LARGE)
        assert (late.status, late.json["code"]) == (504, "deadline")
        assert server.ask("POST", INFER, GOOD).json["outputs"][0]["data"] == [11.0]
    assert server.ask("POST", INFER, large(), **LARGE).json["outputs"][0]["data"] == [11.0]


def test_it_is_answered_as_a_small_one_is(server: Any) -> None:
    rows = np.random.default_rng(3).random((4000, 2), np.float32)
    whole = {"name": "numbers", "datatype": "FP32", "shape": [4000, 2]}
    wanted = [{"name": "prediction", "parameters": {"binary_data": True}}]
    body = orjson.dumps({
        "id": "large-1", "inputs": [whole | {"data": rows.tolist()}], "outputs": wanted,
    })  # fmt: skip
    assert len(body) > INLINE_BYTES
    found = server.ask("POST", INFER, body, **LARGE)
    assert found.headers["x-request-id"] == "large-1"
    text = int(found.headers["inference-header-content-length"])
    assert orjson.loads(found.body[:text])["id"] == "large-1"
    sized = whole | {"parameters": {"binary_data_size": rows.nbytes}}
    head = orjson.dumps({"id": "large-1", "inputs": [sized], "outputs": wanted})
    length = {"inference_header_content_length": str(len(head))}
    small = server.ask("POST", INFER, head + rows.tobytes(), **length)
    assert found.body == small.body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 70_000, "the request is not JSON"),
        (b'{"inputs":[' + b"[]," * 5_000_000 + b"[]]}", "every input must be a JSON object"),
        (large(inputs=[ROW | {"data": [3]}]), "1 values, not 2"),
        (large(outputs=[{"name": "x"}]), "unknown output"),
        (large(id=7), "id must be a string"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_the_same_words(
    server: Any, body: bytes, said: str
) -> None:
    answer = server.ask("POST", INFER, body, **LARGE)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert said in answer.json["error"]


def test_a_header_of_raw_tensors_counts_by_its_json_alone(server: Any) -> None:
    rows = np.ones((20_000, 2), np.float32)
    one = {"name": "numbers", "datatype": "FP32", "shape": [20_000, 2]}
    head = orjson.dumps({"inputs": [one | {"parameters": {"binary_data_size": rows.nbytes}}]})
    length = {"inference_header_content_length": str(len(head))}
    with stopped(server):
        assert server.ask("POST", INFER, head + rows.tobytes(), **length).status == 200
    padded = head + b" " * INLINE_BYTES
    length = {"inference_header_content_length": str(len(padded))}
    answer = server.ask("POST", INFER, padded + rows.tobytes(), **length)
    assert len(answer.json["outputs"][0]["data"]) == 20_000


def test_a_canary_takes_it_by_its_id(server: Any) -> None:
    assert server.ask("POST", CANARY, {"version": "2", "percent": 50}).status == 200
    try:
        names = [f"r-{number}" for number in range(12)]
        found = [server.ask("POST", INFER, GOOD | {"id": name}) for name in names]
        same = [server.ask("POST", INFER, large(id=name), **LARGE) for name in names]
    finally:
        assert server.ask("POST", f"{CANARY}/end", {}).status == 200
    versions = [one.headers["modelmint-version"] for one in found]
    assert set(versions) == {"1", "2"}
    assert [one.headers["modelmint-version"] for one in same] == versions
    assert [one.json["outputs"] for one in same] == [one.json["outputs"] for one in found]


@pytest.mark.parametrize(
    "path",
    ["/v2/repository/index", "/v2/repository/models/air-time/load", "/v1/keys",
     "/v1/lines/air-time/rollback", CANARY],
)  # fmt: skip
def test_what_only_takes_words_takes_few(server: Any, path: str) -> None:
    answer = server.ask("POST", path, b" " * (INLINE_BYTES + 1), **LARGE)
    assert (answer.status, answer.json["code"]) == (413, "too_large")


def test_prompts_are_bounded(server: Any) -> None:
    asked = orjson.dumps({"model": "nobody", "prompt": "a" * (PROMPT_BYTES - 40)})
    assert server.ask("POST", "/v1/completions", asked, **LARGE).status == 404
    asked = b" " * (PROMPT_BYTES + 1)
    answer = server.ask("POST", "/v1/completions", asked, **LARGE)
    assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("name", ["prompt", "stop", "logit_bias", "stream_options"])
def test_a_list_or_object_of_a_completion_is_bounded_before_it_is_looked_at(name: str) -> None:
    member = {f"{at}": [] for at in range(17)}
    for value in (member, list(member.values())):
        with pytest.raises(ProtocolError, match=f"^{name} holds 17, at most 16$"):
            parse(orjson.dumps({"model": "letters", name: value}))


def test_no_more_is_said_of_unknown_members_than_fits() -> None:
    asked = {f"x{at}": 0 for at in range(1000)}
    with pytest.raises(ProtocolError, match="not understood here") as caught:
        parse(orjson.dumps({"model": "letters"} | asked))
    assert len(caught.value.message) < 250
