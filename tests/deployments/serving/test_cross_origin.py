"""Pages of named origins may ask, and are refused in the server's words."""

from pathlib import Path
from typing import Any

from tests.deployments.serving.server import Answer

ORIGIN = "https://pages.example"
OPENAI = (
    "authorization", "content-type", "openai-organization", "openai-project", "user-agent",
    "x-stainless-arch", "x-stainless-lang", "x-stainless-os", "x-stainless-package-version",
    "x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version",
    "x-stainless-timeout",
)  # fmt: skip
"""What `openai` 6 sends of its own from a page, some of it only where that is configured."""


def refused(answer: Answer, why: str) -> None:
    assert (answer.status, answer.json["code"]) == (400, "cross_origin")
    assert answer.json["error"] == f"not for pages from elsewhere: {why}"
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"


def test_pages_of_named_origins_may_ask(start: Any, tmp_path: Path) -> None:
    server = start(tmp_path / "repository", "--allow-origin", ORIGIN)
    wanted = {"access_control_request_method": "POST"}
    asked = {**wanted, "access_control_request_headers": "authorization", "authorization": ""}
    allowed = server.ask("OPTIONS", "/v1/lines/x/predict", origin=ORIGIN, **asked)
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    other = server.ask("OPTIONS", "/v1/lines/x/predict", origin="https://other.example", **asked)
    refused(other, "origin")
    assert "access-control-allow-origin" not in other.headers
    answer = server.ask("GET", "/v2", origin=ORIGIN)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    exposed = answer.headers["access-control-expose-headers"]
    for name in ("modelmint-digest", "retry-after", "inference-header-content-length"):
        assert name in exposed
    known = ("inference-header-content-length", "cache-control", "traceparent", "tracestate")
    for name in (*known, ",".join(OPENAI)):
        asked["access_control_request_headers"] = name
        assert server.ask("OPTIONS", "/v2/models/x/infer", origin=ORIGIN, **asked).status == 200
    asked["access_control_request_headers"] = "x-other"
    asked["x_request_id"] = "mine"
    unknown = server.ask("OPTIONS", "/v2/models/x/infer", origin=ORIGIN, **asked)
    refused(unknown, "headers")
    assert unknown.json["request_id"] == "mine"
    # Or a browser would keep the words to itself.
    assert unknown.headers["access-control-allow-origin"] == ORIGIN
    assert "origin" in unknown.headers["vary"].lower()
    method = {"access_control_request_method": "DELETE", "authorization": ""}
    refused(server.ask("OPTIONS", "/v2/models/x/infer", origin=ORIGIN, **method), "method")
    # No key, no answer, whatever the origin.
    outside = server.ask("GET", "/v2", origin=ORIGIN, authorization="")
    assert (outside.status, outside.headers["access-control-allow-origin"]) == (401, ORIGIN)
    assert "access-control-allow-origin" not in server.ask("GET", "/v2").headers
