"""The OpenAPI 3.1 document: every route there is, with the words and schemas known for it."""

import re
from collections.abc import Iterable

from starlette.routing import Route

from deployments.serving.events import EVENTS
from deployments.serving.openai_protocol import speaks_openai
from deployments.serving.openapi_schemas import (
    CANARY,
    KEY,
    LINE,
    LOAD,
    NUMBER,
    PAYLOAD,
    PROMOTE,
    ROLLBACK,
    ROTATE,
    SCHEMAS,
    SHADOW,
    TEXT,
    UNLOAD,
    Json,
    array_of,
    object_of,
    schema,
)
from deployments.serving.protocol import BINARY, JSON
from deployments.serving.refusals import refusals

# Summary, request content, response schema. A version in the path changes none of them.
KNOWN: dict[tuple[str, str], tuple[str, Json | None, Json]] = {
    ("GET", "/"): ("Lines, their versions and defaults", None, {"type": "object"}),
    ("GET", "/v2"): ("This server and its extensions", None, {"type": "object"}),
    ("GET", "/v2/health/live"): ("Whether it runs", None, {"type": "object"}),
    ("GET", "/v2/health/ready"): ("Whether it answers", None, {"type": "object"}),
    ("GET", "/metrics"): ("Metrics for Prometheus, as text", None, TEXT),
    ("GET", "/v2/models/{name}"): ("A model's tensors", None, {"type": "object"}),
    ("GET", "/v2/models/{name}/ready"): (
        "Whether a model answers: 503 while one that is known cannot, 404 for others", None,
        {"type": "object"},
    ),
    ("POST", "/v2/models/{name}/infer"): (
        "Outputs for tensors (Open Inference Protocol v2)",
        {JSON: {"schema": schema("InferRequest")}, BINARY: {"schema": {"type": "string"}}},
        schema("InferResponse"),
    ),
    ("GET", "/v1/lines/{name}"): ("What a line takes and gives", None, {"type": "object"}),
    ("GET", "/v1/lines/{name}/provenance"): ("The signed provenance", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/predict"): (
        "Answers for an image, a record or rows", PAYLOAD, schema("Predictions")
    ),
    ("POST", "/v1/lines/{name}/explain"): (
        "What the answer for one row rests on", PAYLOAD, schema("Explanation")
    ),
    ("POST", "/v1/completions"): (
        "Texts that go on from prompts, as OpenAI's API has it",
        {JSON: {"schema": schema("CompletionRequest")}}, schema("Completion"),
    ),
    ("GET", "/v1/models"): (
        "The language models, as OpenAI's API has them", None,
        object_of(("object", "data"), object={"const": "list"}, data=array_of(schema("Model"))),
    ),
    ("GET", "/v1/models/{model}"): ("A line, or line@version", None, schema("Model")),
    ("POST", "/v1/lines/{name}/promote"): (
        "Let a loaded version answer by default",
        {JSON: {"schema": PROMOTE}}, {"type": "object"},
    ),
    ("POST", "/v1/lines/{name}/rollback"): (
        "Let an earlier version answer again", {JSON: {"schema": ROLLBACK}}, {"type": "object"}
    ),
    ("POST", "/v1/lines/{name}/record"): (
        "Write promotions into the store's record", None, {"type": "object"}
    ),
    ("GET", "/v1/lines/{name}/canary"): ("What a canary did", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/canary"): (
        "Let a version answer a share of the requests", {JSON: {"schema": CANARY}},
        {"type": "object"},
    ),
    ("POST", "/v1/lines/{name}/canary/end"): ("End the canary", None, {"type": "object"}),
    ("GET", "/v1/lines/{name}/shadow"): ("How a shadow compares", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/shadow"): (
        "Have a version compute requests again", {JSON: {"schema": SHADOW}}, {"type": "object"}
    ),
    ("POST", "/v1/lines/{name}/shadow/end"): ("End the shadow", None, {"type": "object"}),
    ("GET", "/v1/requests/{id}"): ("Which version answered a request", None, {"type": "object"}),
    ("POST", "/v2/repository/index"): (
        "Versions and their states",
        {JSON: {"schema": object_of(ready={"type": "boolean"})}}, array_of({"type": "object"}),
    ),
    ("POST", "/v2/repository/models/{name}/load"): (
        "Verify and load a version; without parameters the one in production where it is not in"
        " memory, else the newest whose folder is here and verifies. None is promoted by that",
        {JSON: {"schema": LOAD}}, {"type": "object"},
    ),
    ("POST", "/v2/repository/models/{name}/unload"): (
        "Stop serving a version; without one all that are not in production, were not before and"
        " are not being tried",
        {JSON: {"schema": UNLOAD}}, {"type": "object"},
    ),
    ("GET", "/v1/keys"): ("All keys, without secrets", None, {"type": "object"}),
    ("POST", "/v1/keys"): ("Make a key", {JSON: {"schema": KEY}}, {"type": "object"}),
    ("POST", "/v1/keys/{id}/rotate"): (
        "Give a key a new secret", {JSON: {"schema": ROTATE}}, {"type": "object"}
    ),
    ("POST", "/v1/keys/{id}/revoke"): ("Let a key in no more", None, {"type": "object"}),
    ("GET", "/v1/usage"): ("What keys used", None, {"type": "object"}),
    ("GET", "/v1/audit"): ("What was changed, by whom", None, {"type": "object"}),
}  # fmt: skip
_QUERIES: dict[str, list[tuple[str, Json]]] = {
    "/v1/lines/{name}/explain": [("label", TEXT)],
    "/v1/usage": [("days", {"type": "integer", "minimum": 0, "maximum": 366})],
    "/v1/audit": [("after", {"type": "integer", "minimum": 0})],
}
_OPTIONAL = (
    "/v2/repository/index", "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload", "/v1/lines/{name}/rollback", "/v1/keys/{id}/rotate",
)  # fmt: skip
"""Routes that take an empty body for an empty object."""
_OPEN = ("/v2/health/live", "/v2/health/ready")
_STREAMED = ("/v1/completions", "/v1/lines/{name}/predict")
"""What may also be answered as server-sent events, to requests for texts that ask for it."""


_HEADERS: Json = {"x-request-id": {"required": True, "schema": TEXT}}


def document(routes: Iterable[Route], release: str) -> Json:
    """The document of a server with these routes."""
    paths: Json = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = _operation(method, route.path)
            paths.setdefault(route.path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Modelmint model server", "version": release},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(method: str, path: str) -> Json:
    general = path.replace("/versions/{version}", "")
    summary, content, answer = KNOWN.get(
        (method, general), (f"{method} {path}", None, {"type": "object"})
    )
    kind = "text/plain" if answer is TEXT else JSON
    shape = schema("OpenAIError" if speaks_openai(path) else "Error")
    refused = refusals(method, general, content is not None)
    found: Json = {
        "summary": summary,
        "operationId": method.lower() + re.sub(r"\W+", "_", path).rstrip("_"),
        "responses": {
            "200": {
                "description": "Done",
                "headers": _HEADERS,
                "content": {kind: {"schema": answer}},
            },
            **{f"{status}": _refusal(when, shape) for status, when in refused.items()},
            "default": _refusal("Refused", shape),
        },
    }
    if general in _STREAMED:
        found["responses"]["200"]["content"][EVENTS] = {"schema": TEXT}
    named = re.findall(r"{(\w+)}", path)
    kinds = {"version": NUMBER, "name": LINE}
    parameters = [_parameter("path", name, kinds.get(name, TEXT)) for name in named]
    parameters += [_parameter("query", *query) for query in _QUERIES.get(general, [])]
    if parameters:
        found["parameters"] = parameters
    if content is not None:
        found["requestBody"] = {"required": general not in _OPTIONAL, "content": content}
    if path in _OPEN:
        found["security"] = []
    return found


def _refusal(when: str, shape: Json) -> Json:
    return {"description": when, "headers": _HEADERS, "content": {JSON: {"schema": shape}}}


def _parameter(place: str, name: str, schema: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}
