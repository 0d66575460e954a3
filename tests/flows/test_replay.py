"""A version replayed from its recipe is the same, bit for bit; what differs is named."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.produce import Production
from flows.replay import SampleError, replay, replay_sample
from models.signature import VERSION_FILE
from models.trust import PublicKey
from tasks import provenance, signing, tracking
from tasks.export import import_folder
from tasks.folders import LocalFolder, StoredFolder
from tasks.promotion import version_folder
from tasks.replay import ATTEMPTED_TAG
from tasks.store import store
from tasks.verify import proven, verify
from tasks.versions import least_replayed, versions
from tests.conftest import ROOT, environment, new_bucket
from tests.flows.elsewhere import checkout, command, in_prefect
from tests.forger import Forger

LINE = "diabetes"
GOLDEN = ROOT / "tests" / "golden" / "current" / LINE


def test_the_nightly_sample_makes_the_version_proven_longest_ago_again_bit_for_bit(
    first: Production, prefect_service: str
) -> None:
    before = least_replayed(LINE, 100)
    assert first.version.number in before
    number = before[0]
    found = replay_sample([LINE], each=1)
    assert found == [{"line": LINE, "version": number, "verdict": "identical"}]
    assert least_replayed(LINE, 100) == [*before[1:], number]

    # What the version says, and not what the replay says it says.
    [digest] = [version["digest"] for version in versions(LINE) if version["version"] == number]
    record = json.loads(store().get(version_folder(LINE, digest) + VERSION_FILE).content)
    recorded = {name: stage["digest"] for name, stage in record["body"]["stages"].items()}
    assert list(recorded) == ["clean", "compress", "evaluate", "train"]
    state, artifact = in_prefect(prefect_service, LINE, number)
    assert state["type"] == "COMPLETED"
    assert artifact["description"] == f"{LINE} version {number}: identical"
    assert artifact["data"] == [
        {
            "stage": stage,
            "recorded": recorded[stage],
            "replayed": recorded[stage],
            "outcome": "identical",
            "reason": "",
        }
        for stage in ("clean", "train", "evaluate", "compress")
    ]
    tags = tracking.client().get_model_version(LINE, str(number)).tags
    assert tags["modelmint.replayed"] == "identical"
    said = verify(StoredFolder(LINE, digest))
    assert said.verdict is not None
    assert said.replays[-1].result == "PASSED"


def test_a_replay_leaves_nothing_of_its_own_behind(first: Production) -> None:
    # A training of another test that failed may have left its checkpoint.
    left = {prefix: set(store().list(prefix)) for prefix in ("checkpoints/", "partitions/")}
    found = replay(LINE, first.version.number, "clean")
    assert (found.verdict, [s.stage for s in found.stages]) == ("identical", ["clean"])
    assert {prefix: set(store().list(prefix)) for prefix in left} == left


def test_one_stage_alone_from_its_recorded_inputs(first: Production) -> None:
    found = replay(LINE, first.version.number, "compress")
    assert (found.verdict, [s.stage for s in found.stages]) == ("identical", ["compress"])
    [stage] = found.stages
    [recorded] = [stage.digest for stage in first.stages if stage.name == "compress"]
    assert stage.identical
    assert stage.replayed == stage.recorded == recorded


@pytest.fixture
def elsewhere(prefect_service: str, tmp_path: Path) -> Iterator[Path]:
    """A place without a version: its own bucket, registry and keys, in a folder."""
    settings = {
        "MODELMINT_KEYS": str(tmp_path / "keys"),
        "MODELMINT_LINES": str(ROOT / "tests" / "lines"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    with environment(**settings), new_bucket():
        yield tmp_path


def test_the_sample_tries_every_version_in_turn_whatever_happens_to_one(elsewhere: Path) -> None:
    folder = shutil.copytree(GOLDEN, elsewhere / "version")
    shutil.rmtree(folder / "raw")
    signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
    assert import_folder(folder)[1] == 1
    # It is of the version as it was.
    (folder / "verdict.json").unlink()
    forger = Forger(folder, proven(LocalFolder(folder)))
    forger.recipe(lambda record: record["body"]["settings"]["training"].update(seed=7))
    assert import_folder(folder)[1] == 2

    def sample() -> str:
        # Its record of promotions cannot be read, so not even its versions can be listed.
        store().put("promotions/broken.json", b"{")
        with pytest.raises(SampleError) as raised:
            replay_sample(["broken", LINE], each=1)
        broken, tried = str(raised.value).split("; ", 1)
        assert broken.startswith("broken None: failed: ValidationError: ")
        return tried

    def tags(number: str) -> dict[str, str]:
        return dict(tracking.client().get_model_version(LINE, number).tags)

    assert sample().startswith("diabetes 2: cannot be replayed: missing raw object")
    assert ATTEMPTED_TAG not in tags("1")
    store().put(f"versions/{LINE}/numbers/1", b"\xff")
    assert sample().startswith("diabetes 1: failed: UnicodeDecodeError")
    assert "modelmint.replayed" not in tags("1")
    assert sample().startswith("diabetes 2: cannot be replayed: missing raw object")


@pytest.mark.slow
def test_changed_code_runs_the_recorded_code_or_says_what_differs(
    first: Production, tmp_path: Path
) -> None:
    """In a release that keeps other sample rows, `compress` gives another artifact."""
    other = checkout(tmp_path)
    path = other / "tasks" / "compress.py"
    path.write_text(path.read_text().replace("SAMPLE_ROWS = 4", "SAMPLE_ROWS = 5"))
    words = ("replay", LINE, str(first.version.number), "--stage", "compress")

    recorded = command(*words, root=other)
    assert recorded.returncode == 0, recorded.stderr[-2000:]
    answer = json.loads(recorded.stdout)
    assert (answer["verdict"], answer["code"]) == ("identical", "the recorded code")

    here = command(*words, "--here", root=other)
    assert here.returncode == 1, here.stderr[-2000:]
    assert "Traceback" not in here.stderr
    answer = json.loads(here.stdout)
    assert (answer["verdict"], answer["first_difference"]) == ("differs", "compress")
    assert answer["code"] == "this checkout"
    assert answer["first_cause"].startswith("changed code of stage compress: tasks.compress ")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recorded_libraries_are_installed_or_the_one_that_cannot_be_is_named(
    first: Production, tmp_path: Path
) -> None:
    """Minutes of pip; `make slow` runs it."""
    words = ("replay", LINE, str(first.version.number), "--stage", "compress", "--install")
    settings = {"MODELMINT_ENVIRONMENTS": str(tmp_path)}
    found = command(*words, **settings, PIP_NO_INDEX="1")
    assert found.returncode == 2, found.stderr[-2000:]
    reason = json.loads(found.stdout)["reason"]
    assert "the lock cannot be installed" in reason
    named = [
        name for name, number in provenance.installed().items() if f"{name}=={number}" in reason
    ]
    assert len(named) == 1, reason

    found = command(*words, **settings, seconds=3000)
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout)
    assert (answer["verdict"], answer["code"]) == ("identical", "the recorded code")
    [python] = tmp_path.glob("*/bin/python")
    version = "from importlib.metadata import version; print(version('onnxruntime'))"
    ran = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == provenance.installed()["onnxruntime"]
