"""Everything bad the server is known to meet, sent to a real one whose limits are the defaults.

Each is refused with a code and the request's id, and nothing of our inside; the same process goes
on, and another tenant is answered in between. What is no HTTP, and WebSocket, are in
`test_limits.py`, bodies that are announced and do not come in `test_app.py`.
"""

import gzip
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from typing import Any, NamedTuple

import numpy as np
import orjson
import psutil
import pytest
from onnx import TensorProto, helper

from models.objectives import Regression
from models.texts import TextFeatures
from models.vocabulary import Characters
from tests.deployments.serving.server import exchange
from tests.deployments.serving.test_limits import chunk
from tests.deployments.serving.versions import assemble, network

INFER, PREDICT = "/v2/models/air-time/infer", "/v1/lines/air-time/predict"
ROW = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}


def text_version() -> Any:
    """prediction = the number of tokens of a text that are none of padding."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sign", ["real"], ["some"]),
        helper.make_node("ReduceSum", ["some", "axis"], ["prediction"], keepdims=0),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", 16])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        axis=np.array([1], np.int64),
    )
    features = TextFeatures(vocabulary=Characters(known=tuple("abc")), length=16)
    tokens = np.zeros((2, 16), np.int64)
    tokens[0, :3], tokens[1, :5] = 3, 4
    sample = {"tokens": tokens, "prediction": np.array([3, 5], np.float32)}
    return assemble("texts", model, features, Regression(target="y", unit=""), sample)


@pytest.fixture(scope="module")
def open_server(
    tmp_path_factory: pytest.TempPathFactory, serve: Any, table: Any, image: Any, lookup: Any
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("bad") / "repository"
    server = serve(root)
    try:
        for version in (table(), image(), lookup(), text_version()):
            version.place(root, "1")
            assert server.load(version, "1").status == 200
            assert server.promote(version.line, "1").status == 200
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def tenant(open_server: Any) -> dict[str, str]:
    """The header of somebody who does nothing wrong."""
    return key(open_server, "quiet", "predict:air-time")


def key(server: Any, tenant: str, *scopes: str, **more: Any) -> dict[str, str]:
    made = server.ask("POST", "/v1/keys", {"tenant": tenant, "scopes": list(scopes), **more})
    assert made.status == 200
    return {"authorization": f"Bearer {made.json['key']}"}


class Bad(NamedTuple):
    """A request, and the answers it may get."""

    path: str
    body: Any
    statuses: tuple[int, ...] = (400,)
    headers: dict[str, str] = {}
    method: str = "POST"


def infer(**changes: Any) -> Bad:
    return Bad(INFER, {"inputs": [ROW | changes]})


def binary(content: bytes, size: int, shape: Any = (1, 2)) -> Bad:
    given = {"name": "numbers", "datatype": "FP32", "shape": shape}
    text = orjson.dumps({"inputs": [given | {"parameters": {"binary_data_size": size}}]})
    return Bad(INFER, text + content, headers={"inference-header-content-length": str(len(text))})


def huge_image() -> bytes:
    """Under 1 KB, which decodes to over 10 GB."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(b"\0" * 50_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + packed + chunk(b"IEND", b"")


def bomb(spaces: int) -> bytes:
    return gzip.compress(b" " * spaces, 1)


RAW = np.array([[3, 4]], np.float32).tobytes()
IMAGE, WHO = "/v1/lines/clothes/predict", "/v1/lines/{}/predict"
BAD: dict[str, Bad | Callable[[], Bad]] = {
    "shape": infer(shape=[2, 1]),
    "rank": infer(shape=[2]),
    "no rows": infer(shape=[0, 2], data=[]),
    "datatype": infer(datatype="FP64"),
    "name": infer(name="number"),
    "twice": Bad(INFER, {"inputs": [ROW, ROW]}),
    "none": Bad(INFER, {"inputs": []}),
    "count": infer(data=[3, 4, 5]),
    "kind of value": infer(data=["3", 4]),
    "out of range": infer(data=[1e39, 4]),
    "another output": Bad(INFER, {"inputs": [ROW], "outputs": [{"name": "x"}]}),
    "negative dimension": infer(shape=[-1, 2]),
    "overflowing dimension": infer(shape=[2**62, 2]),
    "a dimension no integer holds": Bad(
        INFER, orjson.dumps({"inputs": [ROW]}).replace(b"[1,2]", b"[1" + b"0" * 40 + b",2]")
    ),
    "bare NaN": Bad(INFER, orjson.dumps({"inputs": [ROW]}).replace(b"[3,4]", b"[NaN,4]")),
    "an index the network refuses": Bad(
        "/v2/models/lookup/infer",
        {"inputs": [{"name": "categories", "datatype": "INT64", "shape": [1, 1], "data": [99]}]},
    ),
    "truncated binary": binary(RAW[:-1], 8),
    "binary of another size": binary(RAW, 7),
    "binary that goes on": binary(RAW + b"\0", 8),
    "binary of a negative size": binary(RAW, -8),
    "binary of a wide shape": binary(RAW, 8, (2**61, 2)),
    "gzip bomb": lambda: Bad(INFER, bomb(10**8), (413,), {"content-encoding": "gzip"}),
    "a bomb in a bomb": lambda: Bad(
        INFER, gzip.compress(bomb(10**7)), headers={"content-encoding": "gzip"}
    ),
    "1 KB image of 10 GB": lambda: Bad(IMAGE, huge_image(), headers={"content-type": "image/png"}),
    "no image": Bad(IMAGE, b"\x89PNG\r\n\x1a\n" + b"\0" * 999),
    "text of 10 MB": lambda: Bad(
        WHO.format("texts"), b"abc " * 2_500_000, headers={"content-type": "text/plain"}
    ),
    "record of 10 MB": lambda: Bad(PREDICT, b'{"distance":"' + b"9" * 10_000_000 + b'"}'),
    "unknown model": Bad("/v2/models/nobody/infer", {"inputs": [ROW]}, (404,)),
    "unknown line": Bad(WHO.format("nobody"), {}, (404,)),
    "unknown version": Bad("/v2/models/air-time/versions/9/infer", {"inputs": [ROW]}, (404,)),
    "no version": Bad("/v2/models/air-time/versions/x/infer", {"inputs": [ROW]}, (400, 404)),
    "canary for an unknown tenant": Bad(
        "/v1/lines/air-time/canary", {"version": "1", "tenant": "nobody"}, (404,)
    ),
    "path": Bad("/v2/models/..%2f..%2fetc%2fpasswd/infer", {}, (400, 404)),
    "path of a file": Bad("/../../etc/passwd", None, (404,), method="GET"),
    "path with a zero": Bad("/v2/models/air-time%00/infer", {}, (400, 404)),
    "method": Bad(INFER, None, (405,), method="GET"),
    "method of another protocol": Bad(INFER, None, (405,), method="PROPFIND"),
    "no key": Bad(INFER, {"inputs": [ROW]}, (401,), {"authorization": ""}),
    "a key of elsewhere": Bad(
        INFER, {}, (401,), {"authorization": f"Bearer mm_{'0' * 12}_{'A' * 43}"}
    ),
    "another scheme": Bad(INFER, {}, (401,), {"authorization": "Basic bW06bW0="}),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_and_the_server_goes_on(
    open_server: Any, tenant: dict[str, str], what: str
) -> None:
    found = BAD[what]
    bad = found() if callable(found) else found
    before = psutil.Process(open_server.process.pid).create_time()
    headers = {name.replace("-", "_"): value for name, value in bad.headers.items()}
    answer = open_server.ask(bad.method, bad.path, bad.body, x_request_id="mine", **headers)
    assert answer.status in bad.statuses
    assert set(answer.json) == {"error", "code", "request_id"}
    assert answer.json["request_id"] == answer.headers["x-request-id"] == "mine"
    assert len(answer.body) < 1000
    for inside in ("Traceback", "/serving", ".py", "site-packages", str(open_server.root)):
        assert inside not in answer.body.decode()
    other = open_server.ask("POST", INFER, {"inputs": [ROW]}, **tenant)
    assert other.json["outputs"][0]["data"] == [11.0]
    assert psutil.Process(open_server.process.pid).create_time() == before
    assert "Traceback" not in open_server.log


def test_another_tenant_asks_all_the_while_and_is_never_refused(
    open_server: Any, tenant: dict[str, str]
) -> None:
    found: list[Any] = []
    ended = threading.Event()

    def keep_asking(path: str, body: Any) -> None:
        with closing(open_server.connect()) as connection:
            while not ended.is_set():
                try:
                    found.append(exchange(connection, "POST", path, body, **tenant))
                except (OSError, HTTPException) as error:
                    found.append(error)
                    return

    # One is answered by the connection itself, the other is decoded by the processes that bad
    # input is decoded by.
    asked = ((INFER, {"inputs": [ROW]}), (PREDICT, {"distance": 3, "hour": 4}))
    threads = [threading.Thread(target=keep_asking, args=one) for one in asked]
    for thread in threads:
        thread.start()
    try:
        for what, bad in BAD.items():
            one, before = bad() if callable(bad) else bad, len(found)
            answer = open_server.ask(one.method, one.path, one.body, **_named(one))
            assert answer.status in one.statuses, what
            while len(found) < before + 2 and any(thread.is_alive() for thread in threads):
                time.sleep(0.001)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert [one for one in found if getattr(one, "status", None) != 200] == []
    answers = [one.json for one in found]
    inferred = [one["outputs"][0]["data"] for one in answers if "outputs" in one]
    predicted = [one["predictions"][0]["air_time"] for one in answers if "predictions" in one]
    assert inferred == [[11.0]] * len(inferred)
    assert predicted == [11.0] * len(predicted)
    assert min(len(inferred), len(predicted)) > 0
    assert len(found) >= 2 * len(BAD)


def test_values_that_are_not_finite_are_computed_but_no_answer_for_people(open_server: Any) -> None:
    # The protocol knows NaN, as null in JSON; a person gets no number that is none.
    answer = open_server.ask("POST", INFER, {"inputs": [ROW | {"data": [None, 4]}]})
    assert answer.json["outputs"][0]["data"] == [None]
    raw = np.array([[math.inf, math.nan]], np.float32).tobytes()
    bad = binary(raw, 8)
    assert open_server.ask("POST", INFER, bad.body, **_named(bad)).status == 200
    refused = open_server.ask("POST", PREDICT, {"distance": None, "hour": 4})
    assert (refused.status, refused.json["code"]) == (422, "not_finite")


def _named(bad: Bad) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in bad.headers.items()}


def test_expired_revoked_and_foreign_keys_stay_outside(open_server: Any) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
    expiring = key(open_server, "late", "predict:*", expires=soon)
    foreign = key(open_server, "foreign", "predict:clothes", "read:clothes")
    body = {"inputs": [ROW]}
    answer = open_server.ask("POST", INFER, body, **foreign)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    # Whether a line is there is told to nobody who may not see it.
    unknown = open_server.ask("POST", "/v2/models/nobody/infer", body, **foreign)
    assert (unknown.status, unknown.json["code"]) == (403, "forbidden")
    while (answer := open_server.ask("POST", INFER, body, **expiring)).status == 200:
        pass
    assert (answer.status, answer.json["code"]) == (401, "expired_key")
    leaving = key(open_server, "leaving", "predict:*")
    identity = leaving["authorization"].split("_")[1]
    assert open_server.ask("POST", INFER, body, **leaving).status == 200
    assert open_server.ask("POST", f"/v1/keys/{identity}/revoke", {}).status == 200
    answer = open_server.ask("POST", INFER, body, **leaving)
    assert (answer.status, answer.json["code"]) == (401, "revoked_key")
