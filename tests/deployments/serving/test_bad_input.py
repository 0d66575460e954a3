"""Tensors that are wrong, sent to `infer` of a real server whose limits are the defaults.

Each is refused with a code and the request's id, and nothing of our inside; the same process goes
on, and another tenant is answered in between. What people send to `predict` is in
`test_bad_payloads.py`, what is wrong about a request over HTTP in `test_bad_http.py`.
"""

import math
import threading
import time
from contextlib import closing
from http.client import HTTPException
from typing import Any

import numpy as np
import orjson
import pytest

from tests.deployments.serving.bad import INFER, PREDICT, RECORD, ROW, Bad, Table, refused, send
from tests.deployments.serving.server import exchange
from tests.deployments.serving.test_bad_http import ROUTES, wrong
from tests.deployments.serving.test_bad_payloads import BAD as PAYLOADS


def infer(**changes: Any) -> Bad:
    return Bad(INFER, {"inputs": [ROW | changes]})


def binary(content: bytes, size: int, shape: Any = (1, 2)) -> Bad:
    given = {"name": "numbers", "datatype": "FP32", "shape": shape}
    text = orjson.dumps({"inputs": [given | {"parameters": {"binary_data_size": size}}]})
    return Bad(INFER, text + content, headers={"inference-header-content-length": str(len(text))})


RAW = np.array([[3, 4]], np.float32).tobytes()
BAD: Table = {
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
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_and_the_server_goes_on(
    exposed: Any, quiet: dict[str, str], what: str
) -> None:
    found = BAD[what]
    assert refused(exposed, quiet, found() if callable(found) else found) == "invalid_request"


def test_another_tenant_asks_all_the_while_and_is_never_refused(
    exposed: Any, quiet: dict[str, str]
) -> None:
    found: list[Any] = []
    ended = threading.Event()

    def keep_asking(path: str, body: Any) -> None:
        with closing(exposed.connect()) as connection:
            while not ended.is_set():
                try:
                    found.append(exchange(connection, "POST", path, body, **quiet))
                except (OSError, HTTPException) as error:
                    found.append(error)
                    return

    # One is answered by the connection itself, the other is decoded by the processes that bad
    # input is decoded by.
    asked = ((INFER, {"inputs": [ROW]}), (PREDICT, RECORD))
    threads = [threading.Thread(target=keep_asking, args=one) for one in asked]
    for thread in threads:
        thread.start()
    everything = [BAD, PAYLOADS, *map(wrong, ROUTES)]
    try:
        for what, bad in (one for table in everything for one in table.items()):
            one, before = bad() if callable(bad) else bad, len(found)
            assert send(exposed, one).status in one.statuses, what
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
    assert len(found) >= 2 * sum(map(len, everything))


def test_values_that_are_not_finite_are_computed_but_no_answer_for_people(exposed: Any) -> None:
    # The protocol knows NaN, as null in JSON; a person gets no number that is none.
    answer = send(exposed, infer(data=[None, 4]))
    assert answer.json["outputs"][0]["data"] == [None]
    raw = np.array([[math.inf, math.nan]], np.float32).tobytes()
    assert send(exposed, binary(raw, 8)).status == 200
    refusal = send(exposed, Bad(PREDICT, {"distance": None, "hour": 4}))
    assert (refusal.status, refusal.json["code"]) == (422, "not_finite")
