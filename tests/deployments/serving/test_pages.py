"""The page as a browser shows it, and the routes and documents behind it."""

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.browser import browser, watched


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Any, shared: Any) -> Iterator[Any]:
    """The page of the server, newly opened."""
    with watched(chromium, f"http://127.0.0.1:{shared.port}/") as page:
        yield page


def opened(page: Any, shared: Any) -> None:
    page.get_by_label("API key").fill(shared.key)
    page.get_by_role("button", name="Open").click()
    page.get_by_role("heading", name="air-time").wait_for()


def test_a_wrong_key_is_told(page: Any, shared: Any) -> None:
    page.get_by_label("API key").fill("mm_000000000000_x")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("this key is not known here").wait_for()
    assert page.get_by_role("heading", name="air-time").count() == 0


def test_a_record_is_predicted_and_explained(page: Any, shared: Any) -> None:
    opened(page, shared)
    line = page.get_by_role("region", name="air-time", exact=True)
    line.get_by_label("distance (mi)").fill("3")
    line.get_by_label("hour (h)").fill("4")
    line.get_by_label("Version", exact=True).select_option("2")
    line.get_by_role("button", name="Predict").click()
    answer = line.get_by_role("region", name="Answer of air-time")
    answer.get_by_text("21 min").wait_for()
    line.get_by_role("button", name="Explain").click()
    answer.get_by_text("for a mean row").wait_for()
    assert answer.get_by_role("row", name=re.compile("hour 4 .8")).count() == 1


def test_an_image_is_predicted_and_explained_by_keyboard(
    page: Any, shared: Any, picture: bytes, tmp_path: Path
) -> None:
    opened(page, shared)
    file = tmp_path / "coat.png"
    file.write_bytes(picture)
    line = page.get_by_role("region", name="clothes", exact=True)
    line.get_by_label("Drop or choose an image").set_input_files(file)
    line.get_by_role("button", name="Predict").press("Enter")
    answer = line.get_by_role("region", name="Answer of clothes")
    answer.get_by_text("kind: coat").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Explain"
    page.keyboard.press("Space")
    heat = answer.get_by_role("img", name=re.compile("Heat map"))
    heat.or_(answer.locator(".error")).wait_for()
    assert heat.count() == 1, answer.inner_text()
    assert answer.get_by_role("img").evaluate("node => node.naturalWidth") == 28
    # In words too: the bright band is the middle third.
    asked = {"content_type": "image/png"}
    found = shared.ask("POST", "/v1/lines/clothes/explain", picture, **asked).json
    thirds = np.array_split(np.array(found["attributions"]), [10, 19])
    band = [part.sum() for part in np.array_split(thirds[1], [10, 19], axis=1)]
    everything = [p.sum() for third in thirds for p in np.array_split(third, [10, 19], axis=1)]
    rows = answer.get_by_role("row").all_inner_texts()[1:4]
    told = {row.split("\t")[0]: row.split("\t")[1:3] for row in rows}
    shares = [f"{value / np.abs(everything).sum():.0%}".replace("%", " %") for value in band]
    expected = zip(("left", "middle", "right"), shares, strict=True)
    assert told == {part: ["for", share] for part, share in expected}
    name = heat.get_attribute("alt")
    assert re.search("the (left|middle|right) counts most", name)
    if folder := os.environ.get("SCREENSHOTS"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=Path(folder) / f"{scheme}.png", full_page=True)


def test_provenance_metrics_and_operations_are_shown(
    page: Any, shared: Any, picture: bytes
) -> None:
    answer = shared.ask("POST", "/v1/lines/clothes/predict", picture, content_type="image/png")
    assert answer.status == 200
    opened(page, shared)
    line = page.get_by_role("region", name="clothes", exact=True)
    line.get_by_text("show").click()
    line.get_by_role("row", name=re.compile("model.onnx [0-9a-f]{64}")).wait_for()
    page.get_by_role("region", name="Live").get_by_role(
        "row", name=re.compile("clothes")
    ).first.wait_for()
    operation = page.locator("details", has=page.locator("#get_v2_models_name-name"))
    operation.locator("summary").click()
    operation.get_by_label("name").fill("clothes")
    operation.get_by_role("button", name="Send").click()
    operation.get_by_role("status").get_by_text('"platform":"onnxruntime_onnx"').wait_for()


def test_live_figures_go_on_once_the_server_answers_again(chromium: Any, shared: Any) -> None:
    page = chromium.new_page()  # not watched: the browser tells of every request that failed
    page.goto(f"http://127.0.0.1:{shared.port}/")
    opened(page, shared)
    live = page.get_by_role("region", name="Live")
    table, pulse = live.get_by_role("table"), live.get_by_role("status")
    table.wait_for()
    page.context.set_offline(True)
    pulse.get_by_text("The server does not answer").wait_for()
    assert table.count() == 1  # what was known stays
    page.context.set_offline(False)
    page.wait_for_function("node => !node.textContent", arg=pulse.element_handle())
    made = shared.ask("POST", "/v1/keys", {"tenant": "a", "scopes": ["read:*"]}).json
    page.get_by_label("API key").fill(made["key"])
    page.get_by_role("button", name="Open").click()
    live.get_by_role("row", name=re.compile("^Line Version")).wait_for()
    shared.ask("POST", f"/v1/keys/{made['id']}/revoke", {})
    pulse.get_by_text("was revoked").wait_for()
    page.get_by_role("button", name="Open").click()
    page.locator("#say").get_by_text("was revoked").wait_for()
    assert live.count() == 0
    page.close()


def test_a_key_that_may_not_see_the_figures_is_shown_none(page: Any, shared: Any) -> None:
    asked = {"tenant": "a", "scopes": ["read:air-time"]}
    page.get_by_label("API key").fill(shared.ask("POST", "/v1/keys", asked).json["key"])
    with page.expect_response("**/metrics") as refused:
        page.get_by_role("button", name="Open").click()
    assert refused.value.status == 403
    page.get_by_role("heading", name="air-time").wait_for()
    assert page.get_by_role("region", name="Live").count() == 0


def test_every_control_has_a_name_and_dark_is_dark(page: Any, shared: Any) -> None:
    opened(page, shared)
    nameless = """() => [...document.querySelectorAll("input, select, textarea, button")]
        .filter(one => !(one.labels?.length || one.textContent.trim()))
        .map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    brightness = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        brightness[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert brightness["light"] > 600
    assert brightness["dark"] < 150


def test_the_page_is_for_browsers_and_asks_nobody_else(shared: Any) -> None:
    answer = shared.ask("GET", "/", accept="text/html,*/*;q=0.8", authorization="")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    # Nothing is fetched from elsewhere.
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body
    assert shared.ask("GET", "/", accept="application/json").json["lines"]
    assert shared.ask("GET", "/", authorization="").status == 401


def test_a_line_says_what_it_takes_and_gives(shared: Any) -> None:
    found = shared.ask("GET", "/v1/lines/clothes").json
    assert (found["takes"]["kind"], found["takes"]["height"]) == ("image", 28)
    assert found["gives"] == {"target": "kind", "labels": ["boot", "coat", "dress"]}
    assert found["explained"]
    found = shared.ask("GET", "/v1/lines/air-time/versions/2").json
    assert [one["name"] for one in found["takes"]["numbers"]] == ["distance", "hour"]
    assert found["gives"] == {"target": "air_time", "unit": "min"}
    assert shared.ask("GET", "/v1/lines/nothing").status == 404


def test_provenance_is_the_signed_statement(shared: Any) -> None:
    answer = shared.ask("GET", "/v1/lines/air-time/versions/2/provenance")
    statement = orjson.loads(base64.b64decode(answer.json["payload"]))
    assert "model.onnx" in {one["name"] for one in statement["subject"]}
    assert answer.headers["modelmint-version"] == "2"
    made = shared.ask("POST", "/v1/keys", {"tenant": "a", "scopes": ["predict:*"]})
    bearer = {"authorization": f"Bearer {made.json['key']}"}
    assert shared.ask("GET", "/v1/lines/air-time/provenance", **bearer).status == 403


def test_the_document_describes_every_route(shared: Any) -> None:
    found = shared.ask("GET", "/openapi.json", authorization="").json
    assert found["openapi"] == "3.1.0"
    operations = [one for path in found["paths"].values() for one in path.values()]
    names = [one["operationId"] for one in operations]
    assert len(names) == len(set(names)) > 25
    assert not [one["summary"] for one in operations if "/" in one["summary"]]  # words for each
    text = orjson.dumps(found).decode()
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in found["components"]["schemas"]
    for path, methods in found["paths"].items():
        named = set(re.findall(r"{(\w+)}", path))
        for operation in methods.values():
            given = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert given == named
        # What it lists is there: no path of it is unknown to the server.
        filled = path.replace("{version}", "1").replace("{name}", "air-time")
        filled = filled.replace("{model}", "air-time")
        for method in methods:
            answer = shared.ask(method.upper(), filled.replace("{id}", "0" * 12))
            if answer.status != 200:
                told = answer.json if "code" in answer.json else answer.json["error"]
                assert told["code"] not in ("not_found", "http_error")
