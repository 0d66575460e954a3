"""Calls of gRPC: who may ask, in which time, and where it is noted, by a real server."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from tests.deployments.serving.datatypes import EveryDatatype
from tests.deployments.serving.spoken import METHOD, STREAM, Spoken, Talk, message, numbers


def test_the_answer_names_the_version_and_the_request(spoken: Spoken) -> None:
    metadata = {**spoken.server.bearer, "x-request-id": "caller:1"}
    _, call = spoken.stub.ModelInfer.with_call(message(), metadata=tuple(metadata.items()))
    trailers = {one.key: one.value for one in call.trailing_metadata()}
    over_http = spoken.server.ask(
        "POST", "/v1/lines/air-time/predict", {"distance": 3, "hour": 4}
    ).headers
    assert trailers["x-request-id"] == "caller:1"
    metadata = tuple(spoken.server.bearer.items())
    _, call = spoken.stub.ModelInfer.with_call(message(id="caller:2"), metadata=metadata)
    assert ("x-request-id", "caller:2") in [(m.key, m.value) for m in call.trailing_metadata()]
    for name in ("modelmint-model", "modelmint-version", "modelmint-digest"):
        assert trailers[name] == over_http[name]


def test_a_key_is_needed_and_bounded(spoken: Spoken) -> None:
    foreign = spoken.key("predict:every")["authorization"]
    for bearer, code, ours in (
        ("", grpc.StatusCode.UNAUTHENTICATED, "no_key"),
        ("Bearer mm_000000000000_x", grpc.StatusCode.UNAUTHENTICATED, "unknown_key"),
        (foreign, grpc.StatusCode.PERMISSION_DENIED, "forbidden"),
    ):
        refusal = spoken.refusal(message(), authorization=bearer)
        assert refusal.code() == code
        assert dict(refusal.trailing_metadata())["modelmint-code"] == ours
    bearer = spoken.key("predict:*", daily_rows=1)
    spoken.stub.ModelInfer(message(), metadata=tuple(bearer.items()))
    refusal = spoken.refusal(message(), **bearer)
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(refusal.trailing_metadata())["retry-after"]) > 0


def test_nothing_is_read_of_who_shows_no_key(spoken: Spoken) -> None:
    # Whoever reads it finds that it is too large.
    large = message(parameters={"pad": {"string_param": "x" * 5_000_000}})
    for bearer in ("", "Bearer mm_000000000000_x"):
        refusal = spoken.refusal(large, authorization=bearer)
        assert refusal.code() == grpc.StatusCode.UNAUTHENTICATED
    assert spoken.refusal(large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    unread = spoken.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    found = service_pb2.ServerLiveResponse.FromString(unread(large.SerializeToString()))
    assert found.live


@pytest.mark.parametrize(
    ("known", "code"),
    [
        (True, grpc.StatusCode.DEADLINE_EXCEEDED),
        (False, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_a_call_without_its_message_is_cut_off(
    spoken: Spoken, known: bool, code: grpc.StatusCode
) -> None:
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    metadata = tuple(spoken.server.bearer.items()) if known else ()
    call = spoken.channel.stream_unary(METHOD).future(nothing(), metadata=metadata)
    try:
        assert call.code() == code  # waits for it
        assert ("modelmint-code", "timeout" if known else "no_key") in call.trailing_metadata()
    finally:
        ended.set()
    metadata = tuple(spoken.server.bearer.items())
    empty = spoken.channel.stream_unary(METHOD).future(iter(()), metadata=metadata)
    assert empty.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert empty.details() == "the call has no message"
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
    assert "Traceback" not in spoken.server.log


def test_calls_are_counted_with_those_of_http(spoken: Spoken) -> None:
    def rows() -> int:
        usage = spoken.server.ask("GET", "/v1/usage").json["usage"]
        return sum(one["rows"] for one in usage if one["line"] == "every")

    before, features = rows(), EveryDatatype()
    given = []
    for spec in features.inputs:
        one = triton.InferInput(spec.name, [5, 2], spec.datatype)
        one.set_data_from_numpy(features.tensors(5)[spec.name])
        given.append(one)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: spoken.infer("every", given), range(8)))
    assert rows() == before + 40


def test_a_canary_takes_its_share_and_requests_are_in_the_journal(spoken: Spoken) -> None:
    server, path = spoken.server, "/v1/lines/air-time/canary"
    assert server.ask("POST", path, {"version": "2", "percent": 100}).status == 200
    try:
        metadata = tuple({**server.bearer, "x-request-id": "over-grpc"}.items())
        assert spoken.stub.ModelInfer(message(), metadata=metadata).model_version == "2"
        assert spoken.stub.ModelInfer(message(model_version="1"), metadata=metadata)
        counted = server.ask("GET", path).json
        assert counted["canary"]["comparison"]["canary"]["requests"] == 1
    finally:
        server.ask("POST", f"{path}/end", {})
    found = server.ask("GET", "/v1/requests/over-grpc").json["requests"]
    assert [one["version"] for one in found] == ["2", "1"]


def test_damaged_messages_never_fail_the_server(spoken: Spoken) -> None:
    random, whole = np.random.default_rng(5), message(id="x").SerializeToString()
    call = spoken.channel.unary_unary(METHOD)
    metadata, codes = tuple(spoken.server.bearer.items()), set()
    for _ in range(200):
        body = bytearray(whole)
        for at in random.integers(0, len(body), random.integers(1, 4)):
            body[at] = random.integers(0, 256)
        codes.add(call.future(bytes(body), metadata=metadata, timeout=20).code())
    expected = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert codes == expected
    assert spoken.stub.ModelInfer(message(), metadata=metadata).model_name == "air-time"
    assert "Traceback" not in spoken.server.log


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": []}, "invalid_request: missing input numbers"),
        ({"model_name": "nothing"}, "unknown_model: no model 'nothing' is loaded"),
        ({"model_name": "slow", "model_version": "7"}, "version_not_loaded: "),
        ({"parameters": {"sequence_id": {"int64_param": 4}}}, "the sequence extension"),
        (
            {"parameters": {"triton_enable_empty_final_response": {"int64_param": 1}}},
            "invalid_request: triton_enable_empty_final_response must be true or false",
        ),
        (None, "invalid_request: the request is no ModelInferRequest"),
    ],
)
def test_a_wrong_request_is_told_and_the_stream_goes_on(
    spoken: Spoken, changes: Any, words: str
) -> None:
    wrong = b"\xff" if changes is None else message(id="wrong", **changes).SerializeToString()
    good = [message(id=name).SerializeToString() for name in ("before", "after")]
    call = spoken.channel.stream_stream(STREAM)
    metadata = tuple({**spoken.server.bearer, "x-request-id": "whole"}.items())
    came = call(iter([good[0], wrong, good[1]]), metadata=metadata)
    first, told, last = [service_pb2.ModelStreamInferResponse.FromString(one) for one in came]
    for one, name in ((first, "before"), (last, "after")):
        assert (one.error_message, one.infer_response.id) == ("", name)
        assert one.infer_response.model_name == "air-time"
    named = "whole" if changes is None else "wrong"
    assert told.error_message.startswith(f"[request id: {named}] ")
    assert words in told.error_message
    found = told.infer_response
    assert found.id == ("" if changes is None else "wrong")
    assert found.parameters["modelmint-code"].string_param in told.error_message
    assert found.parameters["triton_final_response"].bool_param
    assert not found.outputs


def test_triton_client_is_told_of_an_error(spoken: Spoken) -> None:
    talk = Talk(spoken)
    talk.ask([[1, 2, 3]], request_id="r-1")
    talk.ask([[1, 2]])
    assert "[request id: r-1] invalid_request: input 'numbers' has shape" in str(talk.error())
    assert talk.predicted() == [5]
    talk.end()


def test_the_first_error_ends_a_stream_that_asks_for_it(spoken: Spoken) -> None:
    talk = Talk(spoken, triton_grpc_error="true")
    for values in ([[1, 2]], [[1, 2, 3]], [[1, 2]]):
        talk.ask(values)
    assert talk.predicted() == [5]
    assert "StatusCode.INVALID_ARGUMENT" in str(talk.error())
    assert talk.end() == 0


def test_scopes_and_limits_are_those_of_each_request_of_a_stream(spoken: Spoken) -> None:
    talk = Talk(spoken, spoken.key("predict:slow"))
    talk.ask([[1, 2]])
    talk.ask([[1, 15]], "slow")
    assert "forbidden: " in str(talk.error())
    assert talk.predicted() == pytest.approx([1])
    talk.end()
    limits: list[tuple[dict[str, float], str]] = [
        ({"rate": 1 / 3600, "burst": 2}, "rate_limited: "),
        ({"daily_rows": 2}, "quota_exceeded: "),
    ]
    for limit, words in limits:
        talk = Talk(spoken, spoken.key("predict:*", **limit))
        for _ in range(4):
            talk.ask([[1, 2]])
        assert [talk.predicted() for _ in range(2)] == [[5], [5]]
        for _ in range(2):
            assert words in str(talk.error())
        assert talk.end() == 0


def test_a_stream_needs_a_key_before_anything_is_read(spoken: Spoken) -> None:
    # Whoever reads it finds that it is too large.
    large = message(parameters={"pad": {"string_param": "x" * 5_000_000}})
    for bearer, code in (
        ({}, grpc.StatusCode.UNAUTHENTICATED),
        ({"authorization": "Bearer mm_000000000000_x"}, grpc.StatusCode.UNAUTHENTICATED),
        (spoken.server.bearer, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        call = spoken.stub.ModelStreamInfer(iter([large]), metadata=tuple(bearer.items()))
        assert call.code() == code  # waits for it


def test_requests_of_a_stream_are_counted_noted_and_tried_as_others_are(spoken: Spoken) -> None:
    server, path, key = spoken.server, "/v1/lines/air-time/canary", spoken.key("predict:*")
    assert server.ask("POST", path, {"version": "2", "percent": 50}).status == 200
    names = [f"canary-{n}" for n in range(40)]
    talk = Talk(spoken, key, **{"x-request-id": "whole"})
    try:
        for name in names:
            talk.ask([[1, 2]], request_id=name)
        talk.ask([[1, 2]])
        versions = [talk.answer().get_response().model_version for _ in names]
        unnamed = talk.answer().get_response()
        counted = server.ask("GET", path).json["canary"]["comparison"]
        alone = [spoken.infer("air-time", [numbers([[1, 2]])], request_id=name) for name in names]
    finally:
        server.ask("POST", f"{path}/end", {})
        talk.end()
    assert set(versions) == {"1", "2"}
    assert versions == [one.get_response().model_version for one in alone]
    assert unnamed.id == ""
    assert unnamed.parameters["x-request-id"].string_param == "whole"
    assert sum(counted[role]["requests"] for role in ("production", "canary")) == 41
    [noted, _] = server.ask("GET", "/v1/requests/canary-7").json["requests"]
    identity = key["authorization"].split("_")[1]
    assert (noted["version"], noted["key"]) == (versions[7], identity)
    usage = server.ask("GET", "/v1/usage").json["usage"]
    [used] = [one for one in usage if one["key"] == identity and one["line"] == "air-time"]
    assert (used["requests"], used["rows"]) == (41, 41)
    assert used["bytes_in"] > 0
    assert used["bytes_out"] > 0
