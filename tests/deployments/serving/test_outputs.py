"""A network with two outputs: every protocol gives those that are asked for, in that order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.deployments.serving.pairs import pair_version
from tests.deployments.serving.spoken import Spoken, Talk, numbers, speaking

VALUES = [[1, 2], [3, 4]]
WANTED = {
    "prediction": np.array([5, 11], np.float32), "parts": np.array([[1, 4], [3, 8]], np.float64),
}  # fmt: skip
ASKED = [None, ("prediction",), ("parts",), ("prediction", "parts"), ("parts", "prediction")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    root = tmp_path_factory.mktemp("pairs") / "repository"
    with speaking(root, [(pair_version(), "1")]) as found:
        yield found


def check(found: Any, given: list[str], asked: tuple[str, ...] | None) -> None:
    names = list(asked or WANTED)
    assert given == names
    for name in names:
        array = found.as_numpy(name)
        assert array.dtype == WANTED[name].dtype
        np.testing.assert_array_equal(array, WANTED[name])
    for name in set(WANTED) - set(names):
        assert found.as_numpy(name) is None


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("elsewhere", [False, True])  # answered by the application, not `direct`
@pytest.mark.parametrize("binary", [(), ("prediction",), ("parts",), ("prediction", "parts")])
def test_over_http(
    pairs: Spoken, asked: tuple[str, ...] | None, elsewhere: bool, binary: tuple[str, ...]
) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{pairs.server.port}")
    given = tritonclient.http.InferInput("numbers", [2, 2], "FP32")
    given.set_data_from_numpy(np.array(VALUES, np.float32), binary_data=bool(binary))
    outputs = asked and [
        tritonclient.http.InferRequestedOutput(name, binary_data=name in binary) for name in asked
    ]
    headers = pairs.server.bearer | ({"origin": "https://elsewhere"} if elsewhere else {})
    found = client.infer("pairs", [given], outputs=outputs, headers=headers)
    told = found.get_response()["outputs"]
    check(found, [one["name"] for one in told], asked)
    for one in told if asked else ():
        assert ("data" in one) != (one["name"] in binary)
    client.close()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("stream", [False, True])
def test_over_grpc(pairs: Spoken, asked: tuple[str, ...] | None, stream: bool) -> None:
    outputs = asked and [tritonclient.grpc.InferRequestedOutput(name) for name in asked]
    if stream:
        talk = Talk(pairs)
        talk.ask(VALUES, "pairs", outputs=outputs)
        found = talk.answer()
        assert talk.end() == 0
    else:
        found = pairs.infer("pairs", [numbers(VALUES)], outputs=outputs)
    check(found, [one.name for one in found.get_response().outputs], asked)


def test_metadata_names_both(pairs: Spoken) -> None:
    told = [("prediction", "FP32", [-1]), ("parts", "FP64", [-1, 2])]
    over_http = pairs.server.ask("GET", "/v2/models/pairs").json["outputs"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in over_http] == told
    over_grpc = pairs.client.get_model_metadata("pairs", headers=pairs.server.bearer).outputs
    assert [(one.name, one.datatype, list(one.shape)) for one in over_grpc] == told


def test_people_are_answered_by_the_first(pairs: Spoken) -> None:
    answer = pairs.server.ask("POST", "/v1/lines/pairs/predict", {"distance": 3, "hour": 4})
    assert answer.json["predictions"] == [{"y": 11.0, "unit": ""}]
