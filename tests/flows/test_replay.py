"""A version replayed from its recipe: identical, or refused with the reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.produce import Production
from flows.replay import replay
from models import catalog
from models.signature import VERSION_FILE
from tasks import tracking
from tasks.promotion import version_folder
from tasks.snapshot import raw_prefix
from tasks.store import store

LINE = "diabetes"


def test_a_version_is_made_again_bit_for_bit(first: Production) -> None:
    found = replay(LINE, first.version.number)
    assert found.verdict == "identical"
    assert [s.stage for s in found.stages] == ["clean", "train", "evaluate", "compress"]
    recorded = {stage.name: stage.digest for stage in first.stages}
    for stage in found.stages:
        assert stage.identical
        assert stage.replayed == stage.recorded == recorded[stage.stage]
    tags = tracking.client().get_model_version(LINE, str(first.version.number)).tags
    assert tags["modelmint.replayed"] == "identical"


def test_a_replay_leaves_no_checkpoint_and_takes_no_cached_partition(first: Production) -> None:
    assert first.version.number == 1
    assert list(store().list("checkpoints/")) == []


def command(version: int) -> subprocess.CompletedProcess[str]:
    """`modelmint replay` in a process of its own, against the same services."""
    return subprocess.run(
        [sys.executable, "-m", "modelmint", "replay", LINE, str(version), "--json"],
        cwd=Path(__file__).parent.parent.parent,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_missing_raw_object_is_exit_code_two(first: Production) -> None:
    key = raw_prefix(catalog.find(LINE).data) + "first.csv"
    content = store().get(key).content
    store().delete(key)
    try:
        found = command(first.version.number)
    finally:
        store().put(key, content)
    assert found.returncode == 2, found.stderr
    answer = json.loads(found.stdout)
    assert answer["verdict"] == "cannot be replayed"
    assert "missing raw object" in answer["reason"]
    assert "first.csv" in answer["reason"]


def test_changed_code_is_exit_code_two(first: Production) -> None:
    """The recipe's digest of a module is another one than that of the code here."""
    from models.digests import json_digest

    folder = version_folder(LINE, first.version.digest)
    kept = store().get(folder + VERSION_FILE).content
    body = json.loads(kept)["body"]
    body["stages"]["train"]["identity"]["code"]["tasks.trainer"] = "0" * 64
    digest = json_digest(body)
    number = str(first.version.number)
    tag = "modelmint.digest"
    store().put(
        version_folder(LINE, digest) + VERSION_FILE,
        json.dumps({"digest": digest, "body": body}).encode(),
    )
    tracking.client().set_model_version_tag(LINE, number, tag, digest)
    try:
        found = command(first.version.number)
    finally:
        tracking.client().set_model_version_tag(LINE, number, tag, first.version.digest)
    assert found.returncode == 2, found.stderr
    assert "changed code of stage train: tasks.trainer" in json.loads(found.stdout)["reason"]


def test_an_altered_record_is_refused(first: Production) -> None:
    key = version_folder(LINE, first.version.digest) + VERSION_FILE
    kept = store().get(key).content
    store().put(key, kept.replace(b'"epochs":30', b'"epochs":31'))
    try:
        with pytest.raises(ValueError, match="was altered"):
            replay(LINE, first.version.number)
    finally:
        store().put(key, kept)
