"""Deploy a version: the server verifies and loads it, answers a request, then the alias moves."""

import os
from typing import Any

import httpx
import numpy as np
import orjson
import safetensors.numpy

from models.signature import MODEL_FILE, SAMPLE_FILE, SIGNATURE_FILE, Signature
from tasks import tracking
from tasks.promotion import promote, promotions
from tasks.refs import Artifact, Endpoint, Verdict, Version
from tasks.stage import stage
from tasks.store import store

ENDPOINT_SETTING = "MODELMINT_ENDPOINT"
KEY_SETTING = "MODELMINT_API_KEY"
SAME_RUNTIME = 1e-4
JSON = {"content-type": "application/json"}
ALIASES = {"promote": "champion", "hold": "challenger"}


class DeploymentError(RuntimeError):
    """The server does not serve the version; the one before goes on serving."""


@stage("deploy", cached=False)
def deploy(version: Version, artifact: Artifact, verdict: Verdict) -> Endpoint:
    """Where the line answers. Only a promoted version moves anything; raises DeploymentError."""
    url = os.environ.get(ENDPOINT_SETTING, "").rstrip("/")
    if not url:
        raise DeploymentError(f"{ENDPOINT_SETTING} is not set: start a model server and name it")
    line, number = version.line, str(version.number)
    alias = ALIASES.get(verdict.decision)
    champion = promotions(line).champion
    unchanged = champion is not None and champion.digest == version.digest
    with httpx.Client(base_url=url, timeout=60, headers=authorization()) as client:
        if verdict.decision == "promote":
            judged = verdict.comparison.champion if verdict.comparison else None
            if champion is not None and champion.digest not in (judged, version.digest):
                raise DeploymentError(
                    f"{line} version {champion.number} became champion after version {number} was"
                    " judged: run again, so that it is judged against that one"
                )
            unchanged = unchanged and _serving(client, line) == version.number
            if not unchanged:
                _load(client, version)
                _smoke(client, version, artifact)
                promote(line, version.number, version.digest)
                _post(client, f"/v1/lines/{line}/promote", {"version": number})
        serving = _serving(client, line)
    if alias is not None and not unchanged:
        tracking.client().set_registered_model_alias(line, alias, number)
    return Endpoint(
        digest=version.digest,
        observed={"unchanged": unchanged or verdict.decision != "promote"},
        url=f"{url}/v2/models/{line}",
        serving=serving,
    )


def authorization() -> dict[str, str]:
    """The header that shows the model server our key, the one MODELMINT_API_KEY holds."""
    key = os.environ.get(KEY_SETTING, "")
    return {"authorization": f"Bearer {key}"} if key else {}


def _load(client: httpx.Client, version: Version) -> None:
    parameters = {
        "version": str(version.number),
        "digest": version.digest,
        "source": version.source,
    }
    _post(client, f"/v2/repository/models/{version.line}/load", {"parameters": parameters})


def _smoke(client: httpx.Client, version: Version, artifact: Artifact) -> None:
    """One real request whose answer must be the one ONNX Runtime gives here."""
    from tasks.inference import predict, session

    content = store().get_file(artifact.manifest, SIGNATURE_FILE)
    signature = Signature.model_validate_json(content)
    sample = safetensors.numpy.load(store().get_file(artifact.manifest, SAMPLE_FILE))
    inputs = {spec.name: sample[spec.name] for spec in signature.features.inputs}
    expected = predict(session(store().get_file(artifact.manifest, MODEL_FILE)), inputs)
    tensors = [np.ascontiguousarray(inputs[spec.name]) for spec in signature.features.inputs]
    header = orjson.dumps(
        {
            "inputs": [
                {
                    "name": spec.name,
                    "datatype": spec.datatype,
                    "shape": list(tensor.shape),
                    "parameters": {"binary_data_size": tensor.nbytes},
                }
                for spec, tensor in zip(signature.features.inputs, tensors, strict=True)
            ]
        }
    )
    # Binary, because JSON has no NaN and a null number is one.
    answer = _post(
        client,
        f"/v2/models/{version.line}/versions/{version.number}/infer",
        b"".join([header, *(tensor.tobytes() for tensor in tensors)]),
        {"inference-header-content-length": str(len(header))},
    )
    output = answer["outputs"][0]
    found = np.asarray(output["data"], expected.dtype).reshape(output["shape"])
    same = found.shape == expected.shape and signature.closeness(found, expected) <= SAME_RUNTIME
    if not same:
        raise DeploymentError(
            f"{version.line} version {version.number} answers its recorded sample with other"
            " values than ONNX Runtime does here; the version before goes on serving"
        )


def _serving(client: httpx.Client, line: str) -> int:
    """The version that answers when none is named; 0 while there is none."""
    try:
        answer = client.get(f"/v2/models/{line}")
    except httpx.HTTPError as error:
        raise _silent(client, error) from None
    if answer.status_code in (401, 403):
        raise DeploymentError(
            f"the model server at {client.base_url} does not let us in: set {KEY_SETTING} to a key"
            f" that may read, predict and manage {line}: {answer.text}"
        )
    return int(answer.headers["modelmint-version"]) if answer.status_code == 200 else 0


def _post(
    client: httpx.Client, path: str, body: dict[str, Any] | bytes, headers: Any = None
) -> Any:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    try:
        answer = client.post(path, content=content, headers={**JSON, **(headers or {})})
    except httpx.HTTPError as error:
        raise _silent(client, error) from None
    if answer.status_code >= 400:
        raise DeploymentError(f"{path}: the model server says {answer.status_code}: {answer.text}")
    return answer.json() if answer.content else {}


def _silent(client: httpx.Client, error: httpx.HTTPError) -> DeploymentError:
    return DeploymentError(f"the model server at {client.base_url} does not answer: {error}")
