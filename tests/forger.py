"""Versions whose parts are changed, and signed anew by a key of this place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from models.attestation import Statement, described, signed
from models.digests import canonical_json, json_digest
from models.signature import MANIFEST_FILE, PROVENANCE_FILE, VERSION_FILE
from models.version import Verified
from tasks import signing

Change = Callable[[dict[str, Any]], None]


class Forger:
    """An exported version in a folder that may be written to."""

    def __init__(self, folder: Path, whole: Verified) -> None:
        self.folder, self.whole = folder, whole

    def sign(self, statement: Statement, name: str = PROVENANCE_FILE) -> None:
        (self.folder / name).write_bytes(signed(statement, [signing.signer()]))

    def provenance(self, change: Change, *files: str) -> None:
        """Sign the statement with the change made, as JSON, about the files as they are now."""
        said = orjson.loads(self.whole.statement.model_dump_json(by_alias=True))
        for subject in said["subject"]:
            if subject["name"] in files:
                content = (self.folder / subject["name"]).read_bytes()
                subject["digest"] = described(subject["name"], content).digest
        change(said)
        self.sign(Statement.model_validate(said))

    def file(self, name: str, content: bytes) -> None:
        """Put the content in place of a file, and sign that."""
        (self.folder / name).write_bytes(content)
        self.provenance(lambda _: None, name)

    def recipe(self, change: Change) -> None:
        """Change `version.json`, and the provenance, which names the same recipe."""
        record = orjson.loads((self.folder / VERSION_FILE).read_bytes())
        change(record)
        if isinstance(record["body"], dict):
            record["digest"] = json_digest(record["body"])
        (self.folder / VERSION_FILE).write_bytes(canonical_json(record))

        def same(said: dict[str, Any]) -> None:
            build = said["predicate"]["buildDefinition"]
            build["internalParameters"]["recipe"] = record["body"]

        self.provenance(same, VERSION_FILE)

    def artifact(self, manifest: bytes, digest: str) -> None:
        """Change `manifest.json`, and the recipe, which names its digest."""
        (self.folder / MANIFEST_FILE).write_bytes(manifest)
        self.recipe(lambda record: record["body"].update(artifact=digest))
        (recipe,) = [orjson.loads((self.folder / VERSION_FILE).read_bytes())["body"]]

        def same(said: dict[str, Any]) -> None:
            said["predicate"]["buildDefinition"]["internalParameters"]["recipe"] = recipe

        self.provenance(same, VERSION_FILE, MANIFEST_FILE)
