"""The OpenAPI 3.1 document: every route there is, with the words and schemas known for it."""

import re
from collections.abc import Iterable
from typing import Any

from starlette.routing import Route

from deployments.serving.events import EVENTS
from deployments.serving.folder import DIGEST, LINE, NUMBER
from deployments.serving.keys import SLOWEST
from deployments.serving.openai_protocol import CompletionRequest, speaks_openai
from deployments.serving.parameters import FINAL, NEUTRAL
from deployments.serving.refusals import refusals

Json = dict[str, Any]
_JSON, _BINARY = "application/json", "application/octet-stream"


def _object(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    found: Json = {"type": "object", "properties": properties}
    return found | ({"required": list(required)} if required else {})


def _closed(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    """An object with no other members: they are refused."""
    return _object(required, **properties) | {"additionalProperties": False}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


_TEXT: Json = {"type": "string"}
_WORDS: Json = {"type": "string", "maxLength": 1000}
_LINE: Json = {"type": "string", "pattern": LINE}
_NUMBER: Json = {"type": "string", "pattern": NUMBER}
_DIGEST: Json = {"type": "string", "pattern": DIGEST}
_TENANT: Json = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"}
_SCOPE: Json = {
    "type": "string",
    "pattern": r"^(predict|read|manage|admin):(\*|[a-z][a-z0-9-]{1,40})$",
}
_DATATYPES = [
    "BOOL", *(f"{u}INT{bits}" for u in ("U", "") for bits in (8, 16, 32, 64)),
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
_TENSOR = {
    "name": _TEXT,
    "datatype": {"enum": _DATATYPES},
    "shape": _array({"type": "integer"}),
    "data": {"description": "Flat or nested values in row-major order; null is NaN."},
    "parameters": _closed(binary_data_size={"type": "integer", "minimum": 0}),
}
SCHEMAS: Json = {
    "Error": _object(("error", "code", "request_id"), error=_TEXT, code=_TEXT, request_id=_TEXT),
    "InferRequest": _object(
        ("inputs",),
        id={"type": "string", "description": "Names the request where no x-request-id does."},
        inputs=_array(_object(("name", "datatype", "shape"), **_TENSOR), minItems=1),
        outputs=_array(
            _object(("name",), name=_TEXT, parameters=_closed(binary_data={"type": "boolean"}))
        ),
        parameters=_closed(
            binary_data_output={"type": "boolean"},
            timeout={"type": "integer", "minimum": 0, "description": "Microseconds."},
            **{FINAL: {"type": "boolean"}},
            **{name: {"enum": list(values)} for name, values in NEUTRAL.items()},
        ),
    ),
    "InferResponse": _object(
        ("model_name", "model_version", "outputs"),
        model_name=_TEXT,
        model_version=_NUMBER,
        id=_TEXT,
        outputs=_array(_object(("name", "datatype", "shape"), **_TENSOR)),
    ),
    "Predictions": _object(
        ("line", "version", "digest", "predictions"),
        line=_TEXT,
        version=_NUMBER,
        digest=_DIGEST,
        predictions=_array({"type": "object"}),
    ),
    "Explanation": _object(
        ("line", "version", "digest", "method", "explained", "value", "attributions"),
        line=_TEXT,
        version=_NUMBER,
        digest=_DIGEST,
        method={"enum": ["occlusion", "shapley_sampling"]},
        explained=_TEXT,
        value={"type": "number"},
        attributions=_array({}),
        png={"type": "string", "contentEncoding": "base64"},
    ),
    "CompletionRequest": CompletionRequest.model_json_schema(
        ref_template="#/components/schemas/{model}"
    ),
    "Completion": _object(
        ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"),
        id=_TEXT,
        object={"const": "text_completion"},
        created={"type": "integer"},
        model=_TEXT,
        system_fingerprint=_DIGEST,
        choices=_array(
            _object(
                ("index", "text", "logprobs", "finish_reason"),
                index={"type": "integer"},
                text=_TEXT,
                logprobs={"type": ["object", "null"]},
                finish_reason={"enum": ["length", "stop", None]},
            )
        ),
        usage={"type": ["object", "null"]},
    ),
    "Model": _object(
        ("id", "object", "created", "owned_by", "version", "digest"),
        id=_TEXT,
        object={"const": "model"},
        created={"type": "integer"},
        owned_by=_TEXT,
        version=_NUMBER,
        digest=_DIGEST,
    ),
    "OpenAIError": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param={"type": "null"},
            code=_TEXT,
        ),
    ),
}
# Definitions inside of a schema have no place of their own in the document.
SCHEMAS |= SCHEMAS["CompletionRequest"].pop("$defs")


def _schema(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_PAYLOAD: Json = {
    "application/json": {"schema": {"description": "A record or a list of them, or a prompt."}},
    "text/csv": {"schema": _TEXT},
    "text/plain": {"schema": _TEXT},
    "audio/wav": {"schema": {"type": "string", "format": "binary"}},
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
}
_LOAD = _object(
    parameters=_closed(version=_NUMBER, digest=_DIGEST, source=_WORDS)
    | {
        "dependentRequired": {
            "version": ["digest"], "digest": ["version"], "source": ["version", "digest"],
        }
    }
)  # fmt: skip
_UNLOAD = _object(parameters=_closed(version=_NUMBER, unload_dependents={}))
_MOMENT: Json = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": 10**15}
_LIMITS = _closed(
    rate={"type": ["number", "null"], "minimum": SLOWEST, "maximum": 1e6},
    burst=_COUNT | {"maximum": 1_000_000},
    daily_rows=_COUNT,
    daily_bytes=_COUNT,
)
_KEY = _closed(
    ("tenant", "scopes"),
    tenant=_TENANT,
    scopes=_array(_SCOPE, minItems=1, maxItems=200),
    expires=_MOMENT,
    limits=_LIMITS,
)
_PROMOTE = _closed(
    ("version",), version=_NUMBER, reason=_WORDS, recorded={"type": "string", "maxLength": 256}
)
_ROLLBACK = _closed(version=_NUMBER, reason=_WORDS)
_CANARY = _closed(
    ("version",),
    version=_NUMBER,
    percent={"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    tenant={"type": "string", "minLength": 1, "maxLength": 60},
    by={"enum": ["request", "key"]},
) | {"oneOf": [{"required": ["percent"]}, {"required": ["tenant"]}]}
_SHADOW = _closed(("version",), version=_NUMBER)
_ROTATE = _closed(grace={"type": "number", "minimum": 0, "maximum": 30 * 86_400}, expires=_MOMENT)

# Summary, request content, response schema. A version in the path changes none of them.
KNOWN: dict[tuple[str, str], tuple[str, Json | None, Json]] = {
    ("GET", "/"): ("Lines, their versions and defaults", None, {"type": "object"}),
    ("GET", "/v2"): ("This server and its extensions", None, {"type": "object"}),
    ("GET", "/v2/health/live"): ("Whether it runs", None, {"type": "object"}),
    ("GET", "/v2/health/ready"): ("Whether it answers", None, {"type": "object"}),
    ("GET", "/metrics"): ("Metrics for Prometheus, as text", None, _TEXT),
    ("GET", "/v2/models/{name}"): ("A model's tensors", None, {"type": "object"}),
    ("GET", "/v2/models/{name}/ready"): (
        "Whether a model answers: 503 while one that is known cannot, 404 for others", None,
        {"type": "object"},
    ),
    ("POST", "/v2/models/{name}/infer"): (
        "Outputs for tensors (Open Inference Protocol v2)",
        {_JSON: {"schema": _schema("InferRequest")}, _BINARY: {"schema": {"type": "string"}}},
        _schema("InferResponse"),
    ),
    ("GET", "/v1/lines/{name}"): ("What a line takes and gives", None, {"type": "object"}),
    ("GET", "/v1/lines/{name}/provenance"): ("The signed provenance", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/predict"): (
        "Answers for an image, a record or rows", _PAYLOAD, _schema("Predictions")
    ),
    ("POST", "/v1/lines/{name}/explain"): (
        "What the answer for one row rests on", _PAYLOAD, _schema("Explanation")
    ),
    ("POST", "/v1/completions"): (
        "Texts that go on from prompts, as OpenAI's API has it",
        {_JSON: {"schema": _schema("CompletionRequest")}}, _schema("Completion"),
    ),
    ("GET", "/v1/models"): (
        "The language models, as OpenAI's API has them", None,
        _object(("object", "data"), object={"const": "list"}, data=_array(_schema("Model"))),
    ),
    ("GET", "/v1/models/{model}"): ("A line, or line@version", None, _schema("Model")),
    ("POST", "/v1/lines/{name}/promote"): (
        "Let a loaded version answer by default",
        {_JSON: {"schema": _PROMOTE}}, {"type": "object"},
    ),
    ("POST", "/v1/lines/{name}/rollback"): (
        "Let an earlier version answer again", {_JSON: {"schema": _ROLLBACK}}, {"type": "object"}
    ),
    ("POST", "/v1/lines/{name}/record"): (
        "Write promotions into the store's record", None, {"type": "object"}
    ),
    ("GET", "/v1/lines/{name}/canary"): ("What a canary did", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/canary"): (
        "Let a version answer a share of the requests", {_JSON: {"schema": _CANARY}},
        {"type": "object"},
    ),
    ("POST", "/v1/lines/{name}/canary/end"): ("End the canary", None, {"type": "object"}),
    ("GET", "/v1/lines/{name}/shadow"): ("How a shadow compares", None, {"type": "object"}),
    ("POST", "/v1/lines/{name}/shadow"): (
        "Have a version compute requests again", {_JSON: {"schema": _SHADOW}}, {"type": "object"}
    ),
    ("POST", "/v1/lines/{name}/shadow/end"): ("End the shadow", None, {"type": "object"}),
    ("GET", "/v1/requests/{id}"): ("Which version answered a request", None, {"type": "object"}),
    ("POST", "/v2/repository/index"): (
        "Versions and their states",
        {_JSON: {"schema": _object(ready={"type": "boolean"})}}, _array({"type": "object"}),
    ),
    ("POST", "/v2/repository/models/{name}/load"): (
        "Verify and load a version; without parameters the one in production where it is not in"
        " memory, else the newest whose folder is here and verifies. None is promoted by that",
        {_JSON: {"schema": _LOAD}}, {"type": "object"},
    ),
    ("POST", "/v2/repository/models/{name}/unload"): (
        "Stop serving a version; without one all that are not in production, were not before and"
        " are not being tried",
        {_JSON: {"schema": _UNLOAD}}, {"type": "object"},
    ),
    ("GET", "/v1/keys"): ("All keys, without secrets", None, {"type": "object"}),
    ("POST", "/v1/keys"): ("Make a key", {_JSON: {"schema": _KEY}}, {"type": "object"}),
    ("POST", "/v1/keys/{id}/rotate"): (
        "Give a key a new secret", {_JSON: {"schema": _ROTATE}}, {"type": "object"}
    ),
    ("POST", "/v1/keys/{id}/revoke"): ("Let a key in no more", None, {"type": "object"}),
    ("GET", "/v1/usage"): ("What keys used", None, {"type": "object"}),
    ("GET", "/v1/audit"): ("What was changed, by whom", None, {"type": "object"}),
}  # fmt: skip
_QUERIES: dict[str, list[tuple[str, Json]]] = {
    "/v1/lines/{name}/explain": [("label", _TEXT)],
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


_HEADERS: Json = {"x-request-id": {"required": True, "schema": _TEXT}}


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
    kind = "text/plain" if answer is _TEXT else _JSON
    shape = _schema("OpenAIError" if speaks_openai(path) else "Error")
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
        found["responses"]["200"]["content"][EVENTS] = {"schema": _TEXT}
    named = re.findall(r"{(\w+)}", path)
    kinds = {"version": _NUMBER, "name": _LINE}
    parameters = [_parameter("path", name, kinds.get(name, _TEXT)) for name in named]
    parameters += [_parameter("query", *query) for query in _QUERIES.get(general, [])]
    if parameters:
        found["parameters"] = parameters
    if content is not None:
        found["requestBody"] = {"required": general not in _OPTIONAL, "content": content}
    if path in _OPEN:
        found["security"] = []
    return found


def _refusal(when: str, shape: Json) -> Json:
    return {"description": when, "headers": _HEADERS, "content": {_JSON: {"schema": shape}}}


def _parameter(place: str, name: str, schema: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}
