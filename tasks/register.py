"""Register a version: its recipe, its files and its verdict, exactly once for one version digest.

The version digest covers the snapshot, the identity and the output of every stage, and the served
files. The files are complete in the store before MLflow shows the version. MLflow can neither
compare-and-swap nor refuse a duplicate, so registrations of a line take turns by a lease in the
store, and whoever holds it looks for the digest first.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from models.digests import Digest, IntegrityError, canonical_json, json_digest
from models.signature import MANIFEST_FILE, MODEL_FILE, VERSION_FILE
from tasks import publish, tracking
from tasks.identity import locked
from tasks.lease import lease
from tasks.promotion import version_folder
from tasks.refs import Artifact, Report, Verdict, Version
from tasks.stage import stage
from tasks.store import MissingError, store

DIGEST_TAG = "modelmint.digest"
REGISTERED_FILE = "registered.json"
SERVING_IMPORTS = frozenset({"onnx", "onnxruntime", "numpy"})


class UnknownVersionError(LookupError):
    """The line has no version of that number."""


@stage("register", cached=False)
def register(
    line: str, recipe: dict[str, Any], artifact: Artifact, report: Report, verdict: Verdict
) -> Version:  # fmt: skip
    """The registered version with this recipe and artifact, the same one whoever asks."""
    body = {
        "schema": "modelmint.version/1",
        "line": line,
        "artifact": artifact.digest,
        **recipe,
    }
    digest = json_digest(body)
    folder = version_folder(line, digest)
    known = _remembered(folder, verdict)
    if known is not None:
        return known
    with lease(f"registry/{line}.lease"):
        found = _registered(line, digest)
        unchanged = found is not None
        if found is None:
            # Below the run of its training, which other versions may share.
            training = tracking.run_for(line, recipe["stages"]["train"]["key"])
            run = tracking.run_for(line, digest, parent=training)
            _upload(folder, body, artifact)
            shown = ("model", "training", "budget")
            tracking.log_settings(run, {name: recipe["settings"][name] for name in shown})
            publish.log(run, report, artifact, verdict)
            found = _create(line, digest, folder, run)
            for ended in (training, run):
                tracking.client().update_run(ended, "FINISHED")
        tags = {"verdict": verdict.decision, "reasons": "; ".join(verdict.reasons)}
        for name, value in tags.items():
            if found.tags.get(f"modelmint.{name}") != value:
                tracking.client().set_model_version_tag(
                    line, found.version, f"modelmint.{name}", value
                )
    version = Version(
        digest=digest,
        observed={"unchanged": unchanged},
        line=line,
        number=int(found.version),
        artifact=artifact.digest,
        source=store().uri(folder),
        run=found.run_id,
    )
    content = {**_circumstances(verdict), "version": version.model_dump(mode="json")}
    store().put(folder + REGISTERED_FILE, canonical_json(content))
    return version


def _remembered(folder: str, verdict: Verdict) -> Version | None:
    """The version as it was registered in this MLflow with this verdict, without asking MLflow.

    Importing MLflow takes two seconds, most of a run that finds nothing new.
    """
    try:
        record = json.loads(store().get(folder + REGISTERED_FILE).content)
    except MissingError:
        return None
    now = _circumstances(verdict)
    if not tracking.exists() or any(record[name] != value for name, value in now.items()):
        return None
    version = Version.model_validate(record["version"])
    return version.model_copy(update={"observed": {"unchanged": True}})


def _circumstances(verdict: Verdict) -> dict[str, str]:
    """What has to be as it was for a registration to be still what was asked for."""
    judged = verdict.model_dump(mode="json", include={"digest", "decision", "reasons"})
    return {"tracking": tracking.address(), "verdict": json_digest(judged)}


def version_record(body: dict[str, Any]) -> bytes:
    """`version.json`: the body of a version and its digest."""
    return canonical_json({"digest": json_digest(body), "body": body})


def registered(line: str, number: int) -> dict[str, Any]:
    """The body of `version.json` of a registered version.

    Raises UnknownVersionError, or IntegrityError when it is not what its digest says.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = tracking.client().get_model_version(line, str(number))
    except MlflowException:
        raise UnknownVersionError(f"{line} has no version {number}") from None
    digest = found.tags[DIGEST_TAG]
    record = json.loads(store().get(version_folder(line, digest) + VERSION_FILE).content)
    body: dict[str, Any] = record["body"]
    if json_digest(body) != digest:
        raise IntegrityError(
            f"{version_folder(line, digest)}{VERSION_FILE} was altered: its body has another digest"
            f" than version {number} was registered with"
        )
    return body


def _registered(line: str, digest: Digest) -> Any:
    found = tracking.client().search_model_versions(
        f"name = '{line}' and tags.`{DIGEST_TAG}` = '{digest}'"
    )
    return min(found, key=lambda v: int(v.version)) if found else None


def _upload(folder: str, body: dict[str, Any], artifact: Artifact) -> None:
    """Everything a server, MLflow or a person needs, the record that names it all last."""
    files = {name: store().get_file(artifact.manifest, name) for name in artifact.manifest.files}
    for name, content in {**_mlflow_files(files[MODEL_FILE]), **files}.items():
        store().put(folder + name, content)
    manifest = canonical_json(artifact.manifest.model_dump(mode="json"))
    store().put(folder + MANIFEST_FILE, manifest)
    store().put(folder + VERSION_FILE, version_record(body))


def _mlflow_files(model: bytes) -> dict[str, bytes]:
    """What makes the folder an MLflow model, so that `mlflow.pyfunc.load_model` reads it.

    Holds random identifiers and times, so no digest covers it.
    """
    import mlflow.onnx
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        goal = Path(folder) / "model"
        mlflow.onnx.save_model(
            onnx.load_model_from_string(model),
            os.fspath(goal),
            pip_requirements=[f"{n}=={v}" for n, v in locked(SERVING_IMPORTS).items()],
            onnx_execution_providers=["CPUExecutionProvider"],
        )
        return {p.name: p.read_bytes() for p in sorted(goal.iterdir()) if p.is_file()}


def _create(line: str, digest: Digest, folder: str, run: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        tracking.client().create_registered_model(line)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return tracking.client().create_model_version(
        line,
        source=store().uri(folder.rstrip("/")),
        run_id=run,
        tags={DIGEST_TAG: digest},
    )
