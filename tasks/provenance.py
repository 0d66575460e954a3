"""The provenance of a version: an in-toto statement with SLSA's predicate, signed by this place.

Subjects are the files of the version folder; dependencies the raw objects, the code, its text and
every installed distribution; the recipe stands among the internal parameters. What was merely seen
(times, commit, processor) is here too, and in no digest of the version.

`buildType` urn:modelmint:produce:2 has one external parameter, `line`, and the internal parameters
`recipe`, as in version.json, and `located`, the digest of the table that says which version of each
raw object was read.
"""

import datetime
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from models.attestation import (
    PROVENANCE,
    TEST_RESULT,
    Resource,
    Statement,
    described,
    signed,
)
from models.digests import Digest
from models.predicates import BUILD_TYPE, LOCKED, Provenance
from models.signature import VERSION_FILE
from models.version import Recipe
from tasks import source
from tasks.refs import Snapshot, Verdict
from tasks.signing import signer
from tasks.store import content_key, store

BUILDER = "urn:modelmint:builder"
SOURCE, SNAPSHOT = source.FILE, "snapshot"
# The snapshot's digest covers all of them; a statement of a million lines would serve nobody.
NAMED_OBJECTS = 1000
RESULTS = {"promote": "PASSED", "hold": "WARNED", "refuse": "FAILED"}


def provenance(
    recipe: Recipe, snapshot: Snapshot, files: Mapping[str, bytes], prefix: str
) -> bytes:
    """The signed statement of how the files came to be; `prefix` is where the raw objects were."""
    text = source.archive()
    store().put_content(text)
    dependencies = [
        Resource(
            name=SNAPSHOT,
            uri=store().uri(prefix),
            annotations={
                "table": snapshot.digest,
                "objects": snapshot.objects,
                "bytes": snapshot.size,
            },
        ),
        *_raw_objects(snapshot, prefix),
        described(SOURCE, text).model_copy(update={"annotations": {"commit": source.commit()}}),
        *(Resource(uri=f"{LOCKED}{name}@{version}") for name, version in installed().items()),
    ]
    now = _now()
    statement = Statement(
        subject=tuple(described(name, content) for name, content in sorted(files.items())),
        predicate_type=PROVENANCE,
        predicate={
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"line": recipe.line},
                "internalParameters": {
                    "recipe": recipe.model_dump(mode="json"),
                    "located": snapshot.located,
                },
                "resolvedDependencies": [_dumped(found) for found in dependencies],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"modelmint": metadata.version("modelmint")}},
                "metadata": {"invocationId": _invocation(), "finishedOn": now},
                "byproducts": [
                    {"name": name, "digest": {"blake3": stage.digest}}
                    for name, stage in recipe.stages.items()
                ],
                "modelmint_machine": machine(),
            },
        },
    )
    return signed(statement, [signer()])


def judgement(recipe: Recipe, version_file: bytes, verdict: Verdict) -> bytes:
    """The gate's verdict as a signed test result."""
    return _result(
        version_file,
        RESULTS[verdict.decision],
        {"gate": verdict.decision == "promote"},
        {"gate": verdict.model_dump(mode="json", exclude={"stored", "observed"})},
        recipe.digest,
    )


def replayed(
    digest: Digest, version_file: bytes, stages: Mapping[str, bool], detail: dict[str, Any]
) -> bytes:
    """A replay as a signed test result: every stage is a test, passed when it was identical."""
    outcome = "PASSED" if all(stages.values()) else "FAILED"
    return _result(version_file, outcome, stages, {"replay": detail}, digest)


def monitored(
    digest: Digest, version_file: bytes, tests: Mapping[str, bool], detail: dict[str, Any]
) -> bytes:
    """A search for drift as a signed test result: a test passes where it finds none."""
    outcome = "PASSED" if all(tests.values()) else "WARNED"
    return _result(version_file, outcome, tests, {"drift": detail}, digest)


def _result(
    version_file: bytes, outcome: str, tests: Mapping[str, bool], detail: dict[str, Any],
    digest: Digest,
) -> bytes:  # fmt: skip
    statement = Statement(
        subject=(described(VERSION_FILE, version_file),),
        predicate_type=TEST_RESULT,
        predicate={
            "result": outcome,
            "configuration": [{"name": "recipe", "digest": {"blake3": digest}}],
            "passedTests": [name for name, passed in tests.items() if passed],
            "warnedTests": [] if outcome != "WARNED" else [n for n, ok in tests.items() if not ok],
            "failedTests": [] if outcome == "WARNED" else [n for n, ok in tests.items() if not ok],
            "modelmint_detail": {**detail, "at": _now(), "machine": machine()},
        },
    )
    return signed(statement, [signer()])


def text_of_code(provenance: Provenance) -> bytes:
    """The archive of the code; raises MissingError, or IntegrityError when it was altered."""
    named = provenance.dependency(SOURCE)
    content = store().get(content_key(named.digest.get("blake3", ""))).content
    named.check(content)
    return content


def installed() -> dict[str, str]:
    """Every installed distribution but ourselves and pip: its version."""
    ours = {"modelmint", "pip"}
    found = {d.name.lower(): d.version for d in metadata.distributions()}
    return {name: version for name, version in sorted(found.items()) if name not in ours}


def machine() -> dict[str, str]:
    """The processor and system that computed."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as stream:
            names = (line.partition(":")[2].strip() for line in stream if "model name" in line)
            return next(names, platform.processor())
    except OSError:
        return platform.processor()


def _raw_objects(snapshot: Snapshot, prefix: str) -> Iterable[Resource]:
    table = store().get_table(snapshot.digest).head(NAMED_OBJECTS)
    for name, size, sha256 in table.select("name", "size", "sha256").iter_rows():
        uri = store().uri(prefix + name)
        yield Resource(name=name, uri=uri, digest={"sha256": sha256}, annotations={"bytes": size})


def _dumped(resource: Resource) -> Any:
    return resource.model_dump(mode="json", exclude_defaults=True)


def _invocation() -> str:
    from prefect.runtime import flow_run

    return f"prefect:flow-run:{flow_run.id}" if flow_run.id else ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
