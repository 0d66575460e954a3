"""Register a version: its recipe, its files and its verdict, exactly once for one version digest.

The version digest covers the snapshot, the identity and the output of every stage, and the served
files. The files are complete in the store, and signed, before MLflow shows the version. MLflow can
neither compare-and-swap nor refuse a duplicate, so registrations of a line take turns by a lease in
the store, and whoever holds it looks for the digest first.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from models.digests import Digest, canonical_json, json_digest
from models.predicates import GateVerdict
from models.signature import (
    MANIFEST_FILE,
    PROGRAM_FILE,
    PROVENANCE_FILE,
    VERDICT_FILE,
    VERSION_FILE,
    network_file,
)
from models.version import Recipe, record
from tasks import publish, tracking
from tasks.identity import locked
from tasks.lease import lease
from tasks.promotion import version_folder
from tasks.provenance import judgement, provenance
from tasks.refs import Artifact, Report, Snapshot, Verdict, Version
from tasks.stage import stage
from tasks.store import MissingError, store

DIGEST_TAG = "modelmint.digest"
REGISTERED_FILE = "registered.json"
UNKNOWN = "RESOURCE_DOES_NOT_EXIST"
SERVING_IMPORTS = frozenset({"onnx", "onnxruntime", "numpy"})
PROGRAM_IMPORTS = frozenset({"numpy", "pydantic", "torch"})


class UnknownVersionError(LookupError):
    """The line has no version of that number."""


@stage("register", cached=False)
def register(
    recipe: Recipe, prefix: str, snapshot: Snapshot, artifact: Artifact, report: Report,
    verdict: Verdict,
) -> Version:  # fmt: skip
    """The registered version with this recipe and artifact, the same one whoever asks."""
    line, digest = recipe.line, recipe.digest
    folder = version_folder(line, digest)
    known = _remembered(folder, verdict)
    if known is not None:
        return known
    with lease(f"registry/{line}.lease"):
        found = _registered(line, digest)
        unchanged = found is not None
        if found is None or not store().exists(folder + PROVENANCE_FILE):
            _upload(folder, recipe, prefix, snapshot, artifact)
        if found is None:
            found = _recorded(recipe, folder, report, artifact, verdict)
        _judged(recipe, folder, found, verdict)
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


def _recorded(
    recipe: Recipe, folder: str, report: Report, artifact: Artifact, verdict: Verdict
) -> Any:
    """A new MLflow version with its run, which lies below the run of its training."""
    line = recipe.line
    # Other versions may share the training.
    training = tracking.run_for(line, recipe.stages["train"].key)
    run = tracking.run_for(line, recipe.digest, parent=training)
    shown = ("model", "training", "budget")
    tracking.log_settings(run, {name: recipe.settings[name] for name in shown})
    publish.log(run, report, artifact, verdict)
    found = _create(line, recipe.digest, folder, run)
    for ended in (training, run):
        tracking.client().update_run(ended, "FINISHED")
    return found


def _judged(recipe: Recipe, folder: str, found: Any, verdict: Verdict) -> None:
    """The newest verdict, signed beside the files and as tags of the MLflow version."""
    tags = {"verdict": verdict.decision, "reasons": "; ".join(verdict.reasons)}
    changed = {n: v for n, v in tags.items() if found.tags.get(f"modelmint.{n}") != v}
    if changed or not store().exists(folder + VERDICT_FILE):
        content = judgement(recipe, canonical_json(record(recipe)), verdict)
        store().put(folder + VERDICT_FILE, content)
    for name, value in changed.items():
        tracking.client().set_model_version_tag(
            recipe.line, found.version, f"modelmint.{name}", value
        )


def _remembered(folder: str, verdict: Verdict) -> Version | None:
    """The version as it was registered in this MLflow with this verdict, without asking MLflow.

    Importing MLflow takes two seconds, most of a run that finds nothing new.
    """
    try:
        known = json.loads(store().get(folder + REGISTERED_FILE).content)
        signed = store().exists(folder + PROVENANCE_FILE)
    except MissingError:
        return None
    now = _circumstances(verdict)
    if not (signed and tracking.exists()) or any(known[n] != v for n, v in now.items()):
        return None
    version = Version.model_validate(known["version"])
    return version.model_copy(update={"observed": {"unchanged": True}})


def _circumstances(verdict: Verdict) -> dict[str, str]:
    """What has to be as it was for a registration to be still what was asked for."""
    judged = verdict.model_dump(mode="json", include={"digest", "decision", "reasons"})
    return {"tracking": tracking.address(), "verdict": json_digest(judged)}


def digest_of(line: str, number: int) -> Digest:
    """The digest a version was registered with; raises UnknownVersionError.

    From the record in the store, which needs no MLflow, or else from MLflow.
    """
    try:
        return store().get(_number_key(line, number)).content.decode()
    except MissingError:
        pass
    from mlflow.exceptions import MlflowException

    try:
        found = tracking.client().get_model_version(line, str(number))
        return str(found.tags[DIGEST_TAG])
    except (MlflowException, KeyError) as error:
        if getattr(error, "error_code", UNKNOWN) != UNKNOWN:
            raise  # the registry does not answer, or not as it should
        raise UnknownVersionError(f"{line} has no version {number}") from None


def _number_key(line: str, number: int) -> str:
    return f"versions/{line}/numbers/{number}"


def register_import(recipe: Recipe, verdict: GateVerdict | None) -> int:
    """The number here of a version whose folder is in the store already, made elsewhere."""
    line, digest = recipe.line, recipe.digest
    with lease(f"registry/{line}.lease"):
        found = _registered(line, digest)
        if found is None:
            run = tracking.run_for(line, digest)
            metrics = verdict.metrics if verdict else {}
            tracking.log_metrics(run, {f"served_{n}": value for n, value in metrics.items()})
            found = _create(line, digest, version_folder(line, digest), run)
            tracking.client().update_run(run, "FINISHED")
            tags = {"imported": "yes", "verdict": verdict.decision if verdict else ""}
            for name, value in tags.items():
                tracking.client().set_model_version_tag(
                    line, found.version, f"modelmint.{name}", value
                )
    return int(found.version)


def _registered(line: str, digest: Digest) -> Any:
    found = tracking.client().search_model_versions(
        f"name = '{line}' and tags.`{DIGEST_TAG}` = '{digest}'"
    )
    return min(found, key=lambda v: int(v.version)) if found else None


def _upload(
    folder: str, recipe: Recipe, prefix: str, snapshot: Snapshot, artifact: Artifact
) -> None:
    """Everything a server, MLflow or a person needs; what signs it all comes last."""
    files = {name: store().get_file(artifact.manifest, name) for name in artifact.manifest.files}
    name = network_file(files)
    described = _mlflow_program() if name == PROGRAM_FILE else _mlflow_files(files[name])
    files = {**described, **files}
    files[MANIFEST_FILE] = canonical_json(artifact.manifest.model_dump(mode="json"))
    files[VERSION_FILE] = canonical_json(record(recipe))
    for name, content in files.items():
        store().put(folder + name, content)
    store().put(folder + PROVENANCE_FILE, provenance(recipe, snapshot, files, prefix))


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
            # Else weights a second time, in a file with a random name.
            save_as_external_data=False,
        )
        return {p.name: p.read_bytes() for p in sorted(goal.iterdir()) if p.is_file()}


def _mlflow_program() -> dict[str, bytes]:
    """The same for a program of torch, which is read by this project's code."""
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    model = Model()
    add_to_model(model, loader_module="models.program", data=PROGRAM_FILE)  # type: ignore[no-untyped-call]
    needed = "".join(f"{n}=={v}\n" for n, v in locked(PROGRAM_IMPORTS).items())
    return {"MLmodel": model.to_yaml().encode(), "requirements.txt": needed.encode()}


def _create(line: str, digest: Digest, folder: str, run: str) -> Any:
    """The next MLflow version of the line; the caller holds the registry's lease."""
    from mlflow.exceptions import MlflowException

    try:
        tracking.client().create_registered_model(line)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = tracking.client().create_model_version(
        line,
        source=store().uri(folder.rstrip("/")),
        run_id=run,
        tags={DIGEST_TAG: digest},
    )
    store().put(_number_key(line, int(found.version)), digest.encode())
    return found
