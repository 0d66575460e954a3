"""Deploy a version: the server verifies and loads it, answers a request, then the alias moves."""

from typing import Any

import httpx
import numpy as np
import orjson

from models import samples
from models.promotions import Promotions
from models.signature import SAMPLE_FILE, SIGNATURE_FILE, Signature, network_file
from tasks import tracking
from tasks.promotion import champion_for, mirror, promote, promotions
from tasks.refs import Artifact, Endpoint, Verdict, Version
from tasks.server import DeploymentError, connected, endpoint, load, post, serving, settle
from tasks.stage import stage
from tasks.store import store

SAME_RUNTIME = 1e-4
ALIASES = {"promote": "champion", "hold": "challenger"}


@stage("deploy", cached=False)
def deploy(version: Version, artifact: Artifact, verdict: Verdict) -> Endpoint:
    """Where the line answers. Only a promoted version moves anything; raises DeploymentError."""
    line, number = version.line, str(version.number)
    alias = ALIASES.get(verdict.decision)
    with connected() as client:
        settle(client, line)
        record = promotions(line)
        champion = record.champion
        unchanged = champion is not None and champion.digest == version.digest
        if verdict.decision == "promote":
            _still_judged(version, artifact, verdict, record)
            unchanged = unchanged and serving(client, line) == version.number
            if not unchanged:
                by = load(client, line, version.number, version.digest, version.source)
                _smoke(client, version, artifact)
                entry = promote(line, version.number, version.digest, by, verdict.reasons[0])
                wanted = {"version": number, "recorded": entry.id}
                post(client, f"/v1/lines/{line}/promote", wanted)
        answering = serving(client, line)
    if alias == "champion":
        mirror(line)
    elif alias is not None and not unchanged:
        tracking.client().set_registered_model_alias(line, alias, number)
    return Endpoint(
        digest=version.digest,
        observed={"unchanged": unchanged or verdict.decision != "promote"},
        url=f"{endpoint()}/v2/models/{line}",
        serving=answering,
    )


def _still_judged(
    version: Version, artifact: Artifact, verdict: Verdict, record: Promotions
) -> None:
    """Raises DeploymentError when production has changed since the version was judged."""
    champion = record.champion
    now = champion_for(version.line, artifact.digest)
    if (
        champion is not None
        and now is not None
        and now.digest not in (verdict.against, version.digest)
    ):
        raise DeploymentError(
            f"{version.line} version {champion.number} became champion after version"
            f" {version.number} was judged: run again, so that it is judged against that one"
        )
    if back := record.rolled_back(version.digest):
        raise DeploymentError(
            f"{version.line} version {version.number} was rolled back {back.told}: run again"
        )


def _smoke(client: httpx.Client, version: Version, artifact: Artifact) -> None:
    """One real request whose answer must be the one the network gives here."""
    from tasks.inference import predict, session

    content = store().get_file(artifact.manifest, SIGNATURE_FILE)
    signature = Signature.model_validate_json(content)
    specs = signature.features.inputs
    sample = samples.load(store().get_file(artifact.manifest, SAMPLE_FILE), specs)
    inputs = {spec.name: sample[spec.name] for spec in specs}
    network = store().get_file(artifact.manifest, network_file(artifact.manifest.files))
    expected = predict(session(network), inputs)
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for spec in specs:
        tensor = np.ascontiguousarray(inputs[spec.name])
        told: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(tensor.shape),
        }
        if spec.datatype == "BYTES":
            described.append({**told, "data": tensor.reshape(-1).tolist()})
        else:
            # Binary, because JSON has no NaN and a null number is one.
            described.append({**told, "parameters": {"binary_data_size": tensor.nbytes}})
            raw.append(tensor.tobytes())
    header = orjson.dumps({"inputs": described})
    answer = post(
        client,
        f"/v2/models/{version.line}/versions/{version.number}/infer",
        b"".join([header, *raw]),
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
