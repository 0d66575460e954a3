"""What is sent and answered, as schemas of the OpenAPI document."""

from typing import Any

from deployments.serving import folder
from deployments.serving.keys import SLOWEST
from deployments.serving.openai_protocol import CompletionRequest
from deployments.serving.parameters import FINAL, NEUTRAL

Json = dict[str, Any]


def object_of(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    """An object with these members and any others."""
    found: Json = {"type": "object", "properties": properties}
    return found | ({"required": list(required)} if required else {})


def _closed(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    """An object with no other members: they are refused."""
    return object_of(required, **properties) | {"additionalProperties": False}


def array_of(items: Json, **more: Any) -> Json:
    """A list of such items."""
    return {"type": "array", "items": items, **more}


TEXT: Json = {"type": "string"}
WORDS: Json = {"type": "string", "maxLength": 1000}
LINE: Json = {"type": "string", "pattern": folder.LINE}
NUMBER: Json = {"type": "string", "pattern": folder.NUMBER}
DIGEST: Json = {"type": "string", "pattern": folder.DIGEST}
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
    "name": TEXT,
    "datatype": {"enum": _DATATYPES},
    "shape": array_of({"type": "integer"}),
    "data": {"description": "Flat or nested values in row-major order; null is NaN."},
    "parameters": _closed(binary_data_size={"type": "integer", "minimum": 0}),
}
SCHEMAS: Json = {
    "Error": object_of(("error", "code", "request_id"), error=TEXT, code=TEXT, request_id=TEXT),
    "InferRequest": object_of(
        ("inputs",),
        id={"type": "string", "description": "Names the request where no x-request-id does."},
        inputs=array_of(object_of(("name", "datatype", "shape"), **_TENSOR), minItems=1),
        outputs=array_of(
            object_of(("name",), name=TEXT, parameters=_closed(binary_data={"type": "boolean"}))
        ),
        parameters=_closed(
            binary_data_output={"type": "boolean"},
            timeout={"type": "integer", "minimum": 0, "description": "Microseconds."},
            **{FINAL: {"type": "boolean"}},
            **{name: {"enum": list(values)} for name, values in NEUTRAL.items()},
        ),
    ),
    "InferResponse": object_of(
        ("model_name", "model_version", "outputs"),
        model_name=TEXT,
        model_version=NUMBER,
        id=TEXT,
        outputs=array_of(object_of(("name", "datatype", "shape"), **_TENSOR)),
    ),
    "Predictions": object_of(
        ("line", "version", "digest", "predictions"),
        line=TEXT,
        version=NUMBER,
        digest=DIGEST,
        predictions=array_of({"type": "object"}),
    ),
    "Explanation": object_of(
        ("line", "version", "digest", "method", "explained", "value", "attributions"),
        line=TEXT,
        version=NUMBER,
        digest=DIGEST,
        method={"enum": ["occlusion", "shapley_sampling"]},
        explained=TEXT,
        value={"type": "number"},
        attributions=array_of({}),
        png={"type": "string", "contentEncoding": "base64"},
    ),
    "CompletionRequest": CompletionRequest.model_json_schema(
        ref_template="#/components/schemas/{model}"
    ),
    "Completion": object_of(
        ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"),
        id=TEXT,
        object={"const": "text_completion"},
        created={"type": "integer"},
        model=TEXT,
        system_fingerprint=DIGEST,
        choices=array_of(
            object_of(
                ("index", "text", "logprobs", "finish_reason"),
                index={"type": "integer"},
                text=TEXT,
                logprobs={"type": ["object", "null"]},
                finish_reason={"enum": ["length", "stop", None]},
            )
        ),
        usage={"type": ["object", "null"]},
    ),
    "Model": object_of(
        ("id", "object", "created", "owned_by", "version", "digest"),
        id=TEXT,
        object={"const": "model"},
        created={"type": "integer"},
        owned_by=TEXT,
        version=NUMBER,
        digest=DIGEST,
    ),
    "OpenAIError": object_of(
        ("error",),
        error=object_of(
            ("message", "type", "param", "code"),
            message=TEXT,
            type=TEXT,
            param={"type": "null"},
            code=TEXT,
        ),
    ),
}
# Definitions inside of a schema have no place of their own in the document.
SCHEMAS |= SCHEMAS["CompletionRequest"].pop("$defs")


def schema(name: str) -> Json:
    """A reference to one of the `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


PAYLOAD: Json = {
    "application/json": {"schema": {"description": "A record or a list of them, or a prompt."}},
    "text/csv": {"schema": TEXT},
    "text/plain": {"schema": TEXT},
    "audio/wav": {"schema": {"type": "string", "format": "binary"}},
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
}
LOAD = object_of(
    parameters=_closed(version=NUMBER, digest=DIGEST, source=WORDS)
    | {
        "dependentRequired": {
            "version": ["digest"], "digest": ["version"], "source": ["version", "digest"],
        }
    }
)  # fmt: skip
UNLOAD = object_of(parameters=_closed(version=NUMBER, unload_dependents={}))
_MOMENT: Json = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": 10**15}
_LIMITS = _closed(
    rate={"type": ["number", "null"], "minimum": SLOWEST, "maximum": 1e6},
    burst=_COUNT | {"maximum": 1_000_000},
    daily_rows=_COUNT,
    daily_bytes=_COUNT,
)
KEY = _closed(
    ("tenant", "scopes"),
    tenant=_TENANT,
    scopes=array_of(_SCOPE, minItems=1, maxItems=200),
    expires=_MOMENT,
    limits=_LIMITS,
)
PROMOTE = _closed(
    ("version",), version=NUMBER, reason=WORDS, recorded={"type": "string", "maxLength": 256}
)
ROLLBACK = _closed(version=NUMBER, reason=WORDS)
CANARY = _closed(
    ("version",),
    version=NUMBER,
    percent={"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    tenant={"type": "string", "minLength": 1, "maxLength": 60},
    by={"enum": ["request", "key"]},
) | {"oneOf": [{"required": ["percent"]}, {"required": ["tenant"]}]}
SHADOW = _closed(("version",), version=NUMBER)
ROTATE = _closed(grace={"type": "number", "minimum": 0, "maximum": 30 * 86_400}, expires=_MOMENT)
