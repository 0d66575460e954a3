"""Signed provenance, read by the framework's own library."""

import base64
import json

import orjson
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement as InTotoStatement

from models.attestation import PROVENANCE, TEST_RESULT
from models.signature import PROVENANCE_FILE, VERDICT_FILE
from tasks.folders import StoredFolder
from tasks.provenance import installed, text_of_code
from tasks.refs import Verdict
from tasks.source import archive
from tasks.verify import proven
from tests.tasks.conftest import Trained, recipe_of, registered

LINE = "attested"


def read(name: str, digest: str) -> InTotoStatement:
    """A statement as the in-toto library reads and validates it."""
    envelope = orjson.loads(StoredFolder(LINE, digest).read(name, 1 << 24))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = json.loads(base64.b64decode(envelope["payload"]))
    found = InTotoStatement.copy_from_pb(
        json_format.ParseDict(payload, InTotoStatement([], "", {}).pb)
    )
    found.validate()
    return found


def test_the_provenance_names_files_raw_objects_code_and_libraries(
    trained: Trained, verdict: Verdict
) -> None:
    version = registered(LINE, trained, verdict)
    statement = read(PROVENANCE_FILE, version.digest).pb
    assert statement.predicate_type == PROVENANCE
    subjects = {subject.name: dict(subject.digest) for subject in statement.subject}
    assert set(subjects) >= {"version.json", "manifest.json", "model.onnx", "MLmodel"}
    assert all({"sha256", "blake3"} == set(digest) for digest in subjects.values())
    predicate = json_format.MessageToDict(statement.predicate)
    build = predicate["buildDefinition"]
    recipe = recipe_of(LINE, trained)
    assert build["internalParameters"]["recipe"] == json.loads(recipe.model_dump_json())
    named = {d.get("name") for d in build["resolvedDependencies"]}
    assert named >= {"snapshot", "source.tar.gz", "0.csv", "1.csv", "2.csv"}
    found = proven(StoredFolder(LINE, version.digest)).provenance
    assert found.lock() == installed()
    assert text_of_code(found) == archive()


def test_the_verdict_is_a_test_result_of_the_version(trained: Trained, verdict: Verdict) -> None:
    version = registered(LINE, trained, verdict)
    statement = read(VERDICT_FILE, version.digest).pb
    assert statement.predicate_type == TEST_RESULT
    predicate = json_format.MessageToDict(statement.predicate)
    assert predicate["result"] == "PASSED"
    assert predicate["modelmint_detail"]["gate"]["decision"] == verdict.decision


def test_a_new_verdict_is_signed_in_place_of_the_old_one(
    trained: Trained, verdict: Verdict
) -> None:
    version = registered(LINE, trained, verdict)
    held = verdict.model_copy(update={"decision": "hold", "reasons": ("too slow",)})
    assert registered(LINE, trained, held).digest == version.digest
    predicate = json_format.MessageToDict(read(VERDICT_FILE, version.digest).pb.predicate)
    assert predicate["result"] == "WARNED"
    assert predicate["modelmint_detail"]["gate"]["reasons"] == ["too slow"]
