"""A verdict counts for as long as nobody else became champion."""

import pytest

from models.digests import Manifest, canonical_json
from models.signature import MANIFEST_FILE
from tasks.deploy import DeploymentError, _still_judged
from tasks.promotion import promote, promotions, version_folder
from tasks.refs import Artifact, Verdict, Version
from tasks.store import store

LINE = "trips"
CHAMPION, CHALLENGER = "a" * 64, "b" * 64
MANIFEST = Manifest.of({"model.onnx": b"challenger"})
VERSION = Version(
    digest=CHALLENGER, line=LINE, number=2, artifact=MANIFEST.digest, source="s3://", run=""
)
ARTIFACT = Artifact(
    digest=MANIFEST.digest, manifest=MANIFEST, chosen="uncompressed", candidates=(),
    within_budget=True,
)  # fmt: skip


@pytest.mark.parametrize("against", [CHAMPION, None], ids=["beside it", "before it"])
def test_one_that_was_promoted_without_comparing_may_serve(
    bucket: str, against: str | None
) -> None:
    """As with `gate.incomparable`; but not when nobody was champion at the time."""
    content = canonical_json(Manifest.of({"model.onnx": b"champion"}).model_dump(mode="json"))
    store().put(version_folder(LINE, CHAMPION) + MANIFEST_FILE, content)
    promote(LINE, 1, CHAMPION)
    verdict = Verdict(digest="c" * 64, decision="promote", reasons=(), metrics={}, against=against)
    if against is None:
        with pytest.raises(DeploymentError, match="version 1 became champion after version 2"):
            _still_judged(VERSION, ARTIFACT, verdict, promotions(LINE))
    else:
        _still_judged(VERSION, ARTIFACT, verdict, promotions(LINE))
