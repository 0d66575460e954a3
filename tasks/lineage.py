"""Where an answer or a version comes from: its run, code, data, settings, and who signed for it."""

import re
from typing import Any
from urllib.parse import quote

import orjson

from models.digests import Digest
from models.signature import VERSION_FILE
from models.version import Verified
from tasks.folders import StoredFolder
from tasks.production import told
from tasks.promotion import promotions, version_folder
from tasks.provenance import SNAPSHOT, SOURCE
from tasks.register import REGISTERED_FILE
from tasks.server import DeploymentError, connected, get
from tasks.store import MissingError, store
from tasks.verify import proven, testified

DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]{8,63}")


class UnknownOriginError(LookupError):
    """Neither a request nor a version of that name is known here."""


def lineage(wanted: str) -> dict[str, Any]:
    """What led to a request's answer, or to the version with this digest or its first digits.

    A completion's id is one of a request too. The version's signature and digests are proven
    first; raises IntegrityError, and UnknownOriginError.
    """
    if DIGEST.fullmatch(wanted):
        return {"request": None, **_origin(*_version(wanted))}
    try:
        request = _request(wanted)
    except (DeploymentError, UnknownOriginError) as error:
        if not PREFIX.fullmatch(wanted):
            raise
        # Digits may be either's.
        try:
            return {"request": None, **_origin(*_version(wanted))}
        except UnknownOriginError as other:
            raise UnknownOriginError(f"{error}; and {other}") from None
    return {"request": request, **_origin(*_version(request["digest"]))}


def _request(identity: str) -> dict[str, Any]:
    """The last answer to a request id; raises UnknownOriginError and DeploymentError."""
    with connected() as client:
        found = get(client, f"/v1/requests/{quote(identity, safe='')}")["requests"]
    if not found:
        raise UnknownOriginError(
            f"no request {identity!r} is in the journal of the model server: it may be older than"
            " what that keeps; the answer's header modelmint-digest leads on all the same"
        )
    return dict(found[-1])


def _version(start: str) -> tuple[str, Digest]:
    """Line and digest of the one version whose digest starts so; raises UnknownOriginError."""
    found = set()
    for line in _lines():
        if DIGEST.fullmatch(start):
            if store().exists(version_folder(line, start) + VERSION_FILE):
                return line, start
            continue
        prefix = version_folder(line, start).rstrip("/")
        keys = (item.key.removeprefix(f"versions/{line}/") for item in store().list(prefix))
        found |= {(line, key.partition("/")[0]) for key in keys}
    if len(found) != 1:
        raise UnknownOriginError(
            f"{len(found) or 'no'} version{'s' * (len(found) != 1)} in the store have a digest that"
            f" starts with {start}"
        )
    return found.pop()


def _lines() -> list[str]:
    """The lines that have versions."""
    answer = (
        store()
        .client.get_paginator("list_objects_v2")
        .paginate(Bucket=store().bucket, Prefix="versions/", Delimiter="/")
    )
    prefixes = [found["Prefix"] for page in answer for found in page.get("CommonPrefixes", [])]
    return [prefix.split("/")[1] for prefix in prefixes]


def _origin(line: str, digest: Digest) -> dict[str, Any]:
    folder = StoredFolder(line, digest)
    found = proven(folder, line, digest)
    verification = testified(folder, found)
    try:
        registered = orjson.loads(store().get(folder.prefix + REGISTERED_FILE).content)["version"]
    except MissingError:  # it was made elsewhere and imported
        registered = {}
    details = found.provenance.run_details
    code, data = found.provenance.dependency(SOURCE), found.provenance.dependency(SNAPSHOT)
    return {
        "line": line,
        "version": registered.get("number"),
        "digest": digest,
        "production": told(promotions(line), digest),
        "signed_by": list(verification.signed_by),
        "verdict": verification.verdict.result if verification.verdict else "",
        "replays": [replay.result for replay in verification.replays],
        "run": {
            "mlflow": registered.get("run", ""),
            "prefect": details.metadata.invocation_id,
            "finished": details.metadata.finished_on,
            "machine": details.modelmint_machine.processor,
        },
        "code": {**code.digest, "commit": code.annotations.get("commit", "")},
        "data": {"uri": data.uri, **data.annotations, "objects_named": _objects(found)},
        "stages": {name: stage.digest for name, stage in found.recipe.stages.items()},
        "settings": found.recipe.settings,
    }


def _objects(found: Verified) -> list[dict[str, Any]]:
    """The raw objects the provenance names, of which there are the first thousand."""
    return [
        {"name": one.name, "sha256": one.digest["sha256"]}
        for one in found.provenance.build_definition.resolved_dependencies
        if one.name not in (SNAPSHOT, SOURCE) and "sha256" in one.digest
    ]
