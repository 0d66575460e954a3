"""The Open Inference Protocol v2 over HTTP: JSON and binary tensors to arrays and back.

A request is checked against the tensors a model declares before an array is made. No pydantic: this
runs once a request. JSON has no NaN: null stands for it in floating tensors, both ways. It has no
infinity either, for which nothing stands.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from deployments.serving.elements import check_shape, from_binary, from_json, pack
from deployments.serving.parameters import Owner, check, patience
from models.tensors import TensorSpec

HEADER_LENGTH = "inference-header-content-length"
LONGEST_WAIT = 86_400.0
"""Seconds after which one may ask again in any case: every day begins anew."""
JSON, BINARY = "application/json", "application/octet-stream"
Tensors = dict[str, NDArray[Any]]


class ProtocolError(Exception):
    """An answer other than 200: its HTTP status, a stable code and a message for the caller.

    `retry_after` is in seconds, for a caller who may ask again later.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_request",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.retry_after = retry_after

    @property
    def retry_seconds(self) -> str | None:
        """The text of a `retry-after` header: whole seconds, from one to a day."""
        if self.retry_after is None:
            return None
        return str(max(1, math.ceil(min(self.retry_after, LONGEST_WAIT))))


class Wanted(NamedTuple):
    """An output the caller asked for, and whether as raw bytes."""

    spec: TensorSpec
    binary: bool


class InferRequest(NamedTuple):
    """A checked request: every declared input, in declared order, and the outputs to answer."""

    id: str | None
    tensors: Tensors
    outputs: list[Wanted]
    seconds: float | None = None
    """How long the caller waits for the answer."""

    @property
    def rows(self) -> int:
        """Its rows, as `count` has them."""
        return count(self.tensors)


class Opened(NamedTuple):
    """A request whose tensors are not checked yet."""

    body: bytes
    json_end: int
    """Where raw tensors begin."""
    content: dict[str, Any]
    id: str | None


def count(tensors: Tensors) -> int:
    """Rows of tensors: each has all of them, but for one whose first dimension is fixed."""
    return max(map(len, tensors.values()))


def parse(
    body: bytes,
    header_length: str | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> InferRequest:
    """The request in `body`, checked against the model's tensors.

    `header_length` is the header of that name: the JSON part's bytes, raw tensors follow it. Arrays
    may be read-only views of `body`; BYTES tensors hold `str`. Raises ProtocolError, status 400.
    """
    return checked(unpacked(body, header_length), inputs, outputs)


def json_size(body: bytes, header_length: str | None) -> int:
    """Bytes of the JSON part; raises ProtocolError 400."""
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 19):
        raise ProtocolError(400, "Inference-Header-Content-Length is not a number of bytes")
    size = int(header_length)
    if size > len(body):
        raise ProtocolError(
            400, f"Inference-Header-Content-Length is {size}, the body has {len(body)} bytes"
        )
    return size


def unpacked(body: bytes, header_length: str | None) -> Opened:
    """The first half of `parse`: what takes no model."""
    json_end = len(body) if header_length is None else json_size(body, header_length)
    try:
        request = orjson.loads(memoryview(body)[:json_end])
    except orjson.JSONDecodeError as error:
        raise ProtocolError(400, f"the request is not JSON: {error}") from None
    if type(request) is not dict:
        raise ProtocolError(400, "the request must be a JSON object")
    identity = request.get("id")
    if identity is not None and type(identity) is not str:
        raise ProtocolError(400, "id must be a string")
    return Opened(body, json_end, request, identity)


def checked(
    opened: Opened, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """The second half of `parse`."""
    request = opened.content
    try:
        tensors = _inputs(request.get("inputs"), opened.body, opened.json_end, inputs)
        given = _parameters(request, "request", "the request")
        wanted = _outputs(request, given, outputs)
        return InferRequest(opened.id, tensors, wanted, patience(given) if given else None)
    except ValueError as error:
        raise ProtocolError(400, str(error)) from None


def render(
    request: InferRequest, model: str, version: str, found: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """The response body, and its JSON part's length when raw tensors follow it.

    Raises ProtocolError 422 for infinity in an output that is not asked for as raw bytes.
    """
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for spec, binary in request.outputs:
        array = np.ascontiguousarray(found[spec.name])
        one: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(array.shape),
        }
        if binary:
            content = pack(array)
            raw.append(content)
            one["parameters"] = {"binary_data_size": len(content)}
        elif spec.datatype == "BYTES":
            one["data"] = array.reshape(-1).tolist()
        else:
            one["data"] = array.reshape(-1)
        described.append(one)
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    text = orjson.dumps(head | {"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # sooner found than what orjson writes it for
        _check_finite(request, found)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def _check_finite(request: InferRequest, found: Mapping[str, NDArray[Any]]) -> None:
    for spec, binary in request.outputs:
        array = found[spec.name]
        if not binary and array.dtype.kind == "f" and np.isinf(array).any():
            raise ProtocolError(
                422,
                f"output {spec.name!r} is not finite: ask for it with binary_data, for JSON has no"
                " infinity",
                "not_finite",
            )


def declared(name: str, specs: Sequence[TensorSpec], found: Mapping[str, Any]) -> TensorSpec:
    """The spec of a given input; raises ValueError when there is none or it was found before."""
    for spec in specs:
        if spec.name == name:
            if name in found:
                raise ValueError(f"input {name!r} is given twice")
            return spec
    known = ", ".join(spec.name for spec in specs)
    raise ValueError(f"unknown input {name[:80]!r}: the model takes {known}")


def complete(found: Tensors, specs: Sequence[TensorSpec]) -> Tensors:
    """The inputs in declared order; raises ValueError for a missing one or other row counts."""
    if len(found) < len(specs):
        missing = [spec.name for spec in specs if spec.name not in found]
        raise ValueError(f"missing input {', '.join(missing)}")
    rows = {len(found[spec.name]) for spec in specs if spec.shape[0] == -1}
    if len(rows) > 1:
        raise ValueError(f"inputs have different numbers of rows: {sorted(rows)}")
    return {spec.name: found[spec.name] for spec in specs}


def _inputs(given: Any, body: bytes, offset: int, specs: Sequence[TensorSpec]) -> Tensors:
    if type(given) is not list:
        raise ValueError("inputs must be a list of tensors")
    found: Tensors = {}
    for one in given:
        name = one.get("name") if type(one) is dict else None
        if type(name) is not str:
            raise ValueError("every input must be a JSON object with a name")
        spec = declared(name, specs, found)
        found[name], offset = _input(one, body, offset, spec)
    whole = complete(found, specs)
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes follow the last tensor")
    return whole


def _input(
    one: dict[str, Any], body: bytes, offset: int, spec: TensorSpec
) -> tuple[NDArray[Any], int]:
    """The tensor, and where the next one's raw bytes begin."""
    what = f"input {spec.name!r}"
    if one.get("datatype") != spec.datatype:
        raise ValueError(f"{what} must have datatype {spec.datatype}")
    shape = check_shape(one.get("shape"), spec)
    size = _parameters(one, "input", what).get("binary_data_size")
    if size is None:
        return from_json(one.get("data"), shape, spec, body), offset
    if "data" in one:
        raise ValueError(f"{what} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise ValueError(f"{what}: binary_data_size is not a number of bytes")
    left = len(body) - offset
    if size > left:
        raise ValueError(f"{what} is cut short: {size} bytes announced, {left} left")
    return from_binary(body, offset, size, shape, spec), offset + size


def _outputs(
    request: dict[str, Any], given: dict[str, Any], specs: Sequence[TensorSpec]
) -> list[Wanted]:
    binary = _flag(given, "binary_data_output", False)
    asked = request.get("outputs")
    if asked is None or asked == []:
        return [Wanted(spec, binary) for spec in specs]
    if type(asked) is not list:
        raise ValueError("outputs must be a list")
    declared = {spec.name: spec for spec in specs}
    found: dict[str, Wanted] = {}
    for one in asked:
        name = one.get("name") if type(one) is dict else None
        if type(name) is not str or name not in declared:
            raise ValueError(f"unknown output: the model gives {', '.join(declared)}")
        if name in found:
            raise ValueError(f"output {name!r} is asked for twice")
        parameters = _parameters(one, "output", f"output {name!r}")
        found[name] = Wanted(declared[name], _flag(parameters, "binary_data", binary))
    return list(found.values())


def _parameters(one: dict[str, Any], owner: Owner, what: str) -> dict[str, Any]:
    found = one.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise ValueError(f"parameters of {what} must be a JSON object")
    check(found, owner, what)
    return found


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    found = parameters.get(name, default)
    if type(found) is not bool:
        raise ValueError(f"{name} must be true or false")
    return found
