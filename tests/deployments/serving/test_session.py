"""How a version is opened: whether its rows may be computed beside others', and whether it pays."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from deployments.serving import session
from deployments.serving.paces import Paces
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import Served, open_version
from models import samples
from models.objectives import Regression
from models.signature import MANIFEST_FILE, PROVENANCE_FILE, SAMPLE_FILE, VERSION_FILE
from tests.deployments.serving.datatypes import Numerals
from tests.deployments.serving.pairs import pair_version
from tests.deployments.serving.versions import Version, assemble, network


def opened(version: Any) -> Served:
    return open_version(version.line, "1", version.digest, version.files)


def test_a_quick_network_stays_on_the_event_loop(table: Any) -> None:
    served = opened(table())
    assert served.batch_rows == 1
    assert served.inline_rows > 0


def test_a_network_that_gains_is_batched(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GAIN_SECONDS", -1.0)
    served = opened(table())
    assert (served.batch_rows, served.inline_rows) == (session.MOST_ROWS, 0)
    assert served.row_seconds > 0


@pytest.mark.parametrize(("together", "joined"), [(8e-5, 25), (1.05e-4, 19), (1.2e-4, 1)])
def test_rows_are_joined_unless_they_take_clearly_longer(
    table: Any, monkeypatch: pytest.MonkeyPatch, together: float, joined: int
) -> None:
    monkeypatch.setattr(session, "paces_of", lambda *_: Paces(1e-4, together))
    served = opened(table())
    assert (served.gathered_rows, served.batch_rows) == (joined, 1)


@pytest.mark.parametrize("kind", ["centred", "quantized"])
def test_rows_that_depend_on_each_other_are_never_batched(
    own: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(session, "GAIN_SECONDS", -1.0)
    numbers = np.array([[1, 2], [3, 400], [5, 6]], np.float32)
    if kind == "centred":
        first = [
            helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["numbers", "mean"], ["x"]),
        ]
    else:
        # As a dynamically quantized network does it: the range is the whole batch's.
        first = [
            helper.make_node("DynamicQuantizeLinear", ["numbers"], ["q", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        ]
    served = opened(own([*first, helper.make_node("MatMul", ["x", "w"], ["y"])], numbers))
    assert served.batch_rows == 1


def test_rows_that_do_not_depend_on_each_other_are(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GAIN_SECONDS", -1.0)
    nodes = [helper.make_node("MatMul", ["numbers", "w"], ["y"])]
    served = opened(own(nodes, np.array([[1, 2], [3, 400]], np.float32)))
    assert served.batch_rows > 1


@pytest.mark.parametrize(("centred", "alike"), [(False, True), (True, False)])
def test_a_further_output_that_depends_on_other_rows_counts_as_well(
    monkeypatch: pytest.MonkeyPatch, centred: bool, alike: bool
) -> None:
    monkeypatch.setattr(session, "GAIN_SECONDS", -1.0)
    served = opened(pair_version(centred))
    assert [spec.name for spec in served.outputs] == ["prediction", "parts"]
    assert (served.batch_rows > 1) == alike
    assert (served.turn_rows is not None) == alike


def numerals(first: str = "1") -> Version:
    """prediction = the sum of two numbers that are given as texts."""
    nodes = [
        helper.make_node("Cast", ["numerals"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "one"], ["prediction"], keepdims=0),
    ]
    model = network(
        nodes,
        [helper.make_tensor_value_info("numerals", TensorProto.STRING, ["n", 2])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n"])],
        one=np.array([1], np.int64),
    )
    sample = {
        "numerals": np.array([[first, "20"], ["-3.5", "4"]], object),
        "prediction": np.array([21, 0.5], np.float32),
    }
    return assemble("numerals", model, Numerals(), Regression(target="y", unit=""), sample)


def test_a_network_that_takes_texts_is_proven_on_a_sample_of_texts() -> None:
    served = opened(numerals())
    found = served.run({"numerals": np.array([["1000", "0.5"]], object)})
    assert found["prediction"].tolist() == [1000.5]
    with pytest.raises(ProtocolError, match="from the recorded one"):
        opened(numerals("500"))


def test_a_sample_without_its_texts_is_refused(sealed: Any) -> None:
    files = dict(numerals().files)
    files[SAMPLE_FILE] = samples.save({"numerals": np.zeros((2, 2), np.float32)})
    for name in (MANIFEST_FILE, VERSION_FILE, PROVENANCE_FILE):
        del files[name]
    with pytest.raises(ProtocolError, match="cannot be read"):
        opened(sealed("numerals", files))
