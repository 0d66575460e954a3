"""Explanations of networks whose answers are known by hand."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.serving.explain import question
from deployments.serving.explain_sequence import MOST_WINDOWS
from deployments.serving.protocol import ProtocolError, Tensors
from deployments.serving.session import Served, open_version
from tests.deployments.serving.sequences import clip, opinion_version, tones_version


def explained(served: Served, tensors: Tensors, label: str | None = None) -> dict[str, Any]:
    asked = question(served, tensors, label)
    chunks = list(asked.chunks)
    name = served.outputs[0].name
    outputs = np.concatenate([served.run(chunk)[name] for chunk in chunks])
    assert len(outputs) == asked.rows
    assert max(len(next(iter(chunk.values()))) for chunk in chunks) <= 32
    return asked.explain(outputs)


def opened(version: Any) -> Served:
    return open_version(version.line, "1", version.digest, version.files)


def test_shapley_values_of_a_sum_are_its_terms(table: Any) -> None:
    found = explained(opened(table(5.0)), {"numbers": np.array([[3, -4]], np.float32)})
    # prediction = distance + 2 hour + 5, and the mean of both is 0
    assert found["explained"] == "air_time in min"
    assert (found["value"], found["value_of_mean_row"]) == (0.0, 5.0)
    by_name = {one["feature"]: one for one in found["attributions"]}
    assert by_name["distance"] == {"feature": "distance", "value": 3.0, "attribution": 3.0}
    assert by_name["hour"] == {"feature": "hour", "value": -4.0, "attribution": -8.0}
    assert found["attributions"][0]["feature"] == "hour"


def test_shapley_values_of_an_interaction_share_it_and_add_up(product: Any) -> None:
    served = opened(product())
    found = explained(served, {"numbers": np.array([[3, 4]], np.float32)})
    # a times b, from 0 times 0: whoever comes second brings all of it, each in half of the orders
    assert [one["attribution"] for one in found["attributions"]] == [6.0, 6.0]
    total = sum(one["attribution"] for one in found["attributions"])
    assert total == found["value"] - found["value_of_mean_row"]
    assert found == explained(served, {"numbers": np.array([[3, 4]], np.float32)})


def test_categories_are_named_and_an_unknown_one_is_null(lookup: Any) -> None:
    served = opened(lookup())
    found = explained(served, {"categories": np.array([[2]], np.int64)})
    assert found["attributions"] == [{"feature": "kind", "value": "y", "attribution": 20.0}]
    found = explained(served, {"categories": np.array([[0]], np.int64)})
    assert found["attributions"] == [{"feature": "kind", "value": None, "attribution": 0.0}]


def test_occlusion_finds_the_part_that_counts(image: Any) -> None:
    served = opened(image())
    pixels = np.zeros((1, 1, 28, 28), np.uint8)
    pixels[:, :, 10:18] = 255  # the class `coat` looks at rows 9.1 to 18.3
    found = explained(served, {"image": pixels})
    heat = np.array(found["attributions"])
    assert found["explained"] == "probability of coat"
    assert heat.shape == (28, 28)
    assert heat[11:17].min() > 2 * abs(heat[21:]).max()
    against = np.array(explained(served, {"image": pixels}, "boot")["attributions"])
    assert against[11:17].max() < 0
    with pytest.raises(ProtocolError, match="there are boot, coat, dress") as caught:
        question(served, {"image": pixels}, "shoe")
    assert caught.value.status == 400


def test_another_kind_is_not_explained(every: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        question(opened(every()), {}, None)
    assert (caught.value.status, caught.value.code) == (422, "unexplained")


def test_tokens_that_count_are_found_and_the_text_is_told_whole() -> None:
    served = opened(opinion_version())
    text = "a好 + b\u4e0dc"  # the last but one is unknown
    tokens, _ = served.signature.features.request(text.encode(), "text/plain")
    found = explained(served, tokens)
    assert found["explained"] == "probability of for"
    assert found["value"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert "".join(one["text"] for one in found["attributions"]) == "a好 + b\ufffdc"
    worth = [one["attribution"] for one in found["attributions"]]
    # Two tokens are hidden at a time: both windows over the plus lose all it gave.
    assert worth.index(max(worth)) == text.index("+")
    assert max(worth) == pytest.approx(found["value"] - 0.5, abs=1e-6)
    assert worth[0] == worth[1] == worth[-1] == 0
    against = [one["attribution"] for one in explained(served, tokens, "against")["attributions"]]
    np.testing.assert_allclose(against, -np.array(worth), atol=1e-6)


def test_a_long_text_takes_no_more_rows_and_one_letter_one() -> None:
    served = opened(opinion_version())
    tokens, _ = served.signature.features.request(b"+" * 200, "text/plain")
    asked = question(served, tokens, None)
    assert asked.rows <= MOST_WINDOWS + 1
    found = explained(served, tokens)
    assert (found["window"], len(found["attributions"])) == (4, 200)
    tokens, _ = served.signature.features.request(b"+", "text/plain")
    [only] = explained(served, tokens)["attributions"]
    assert only["attribution"] == pytest.approx(1 / (1 + np.exp(-1)) - 0.5, abs=1e-6)


def test_a_transcript_hangs_on_the_stretches_where_it_is_said() -> None:
    served = opened(tones_version())
    tensors, _ = served.signature.features.request(clip("ab"), "audio/wav")
    found = explained(served, tensors)
    assert "\u201cab\u201d" in found["explained"]
    worth = {one["start"]: one["attribution"] for one in found["attributions"]}
    # Two stretches of 0.1 s are hidden at a time; a letter of 0.3 s that loses both may be lost.
    said = {start: worth.pop(start) for start in (0.3, 0.4, 0.9, 1.0)}
    assert min(said.values()) > 5 * max(map(abs, worth.values()))
    assert found["attributions"][0]["start"] == 0
    with Image.open(io.BytesIO(base64.b64decode(found["png"]))) as drawn:
        assert drawn.size == (tensors["frames"][0], 4)
    quiet, _ = served.signature.features.request(clip(""), "audio/wav")
    assert "\u201c\u201d" in explained(served, quiet)["explained"]


def test_a_server_explains_an_image(shared: Any, picture: bytes) -> None:
    path = "/v1/lines/clothes/explain"
    answer = shared.ask("POST", path, picture, content_type="image/png")
    assert answer.status == 200
    assert answer.json["version"] == "1"
    assert answer.json["digest"] == answer.headers["modelmint-digest"]
    assert answer.json["explained"] == "probability of coat"
    shown = shared.ask("POST", path, picture, content_type="image/png", accept="image/png")
    assert shown.headers["content-type"] == "image/png"
    assert shown.body == base64.b64decode(answer.json["png"])
    with Image.open(io.BytesIO(shown.body)) as found:
        assert (found.size, found.mode) == ((28, 28), "RGB")
        red, _, blue = found.getpixel((14, 13))
    assert red > blue


def test_a_server_explains_a_record_and_charges_for_its_rows(shared: Any) -> None:
    def rows() -> int:
        usage = shared.ask("GET", "/v1/usage").json["usage"]
        return sum(one["rows"] for one in usage if one["line"] == "air-time")

    before = rows()
    path = "/v1/lines/air-time/versions/2/explain"
    answer = shared.ask("POST", path, {"distance": 3, "hour": 4})
    assert [one["attribution"] for one in answer.json["attributions"]] == [8.0, 3.0]
    assert rows() - before == 3 * answer.json["orders"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'[{"distance": 3, "hour": 4}, {"distance": 3, "hour": 4}]', 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"distance": null, "hour": 4}', 422),
    ],
)
def test_what_cannot_be_explained_is_refused(shared: Any, body: bytes, status: int) -> None:
    path = "/v1/lines/air-time/explain"
    answer = shared.ask("POST", path, body, content_type="application/json")
    assert answer.status == status


def test_it_takes_a_key_that_predicts(shared: Any) -> None:
    made = shared.ask("POST", "/v1/keys", {"tenant": "reader", "scopes": ["read:*"]})
    bearer = {"authorization": f"Bearer {made.json['key']}"}
    path = "/v1/lines/air-time/explain"
    assert shared.ask("POST", path, {"distance": 3, "hour": 4}, **bearer).status == 403
