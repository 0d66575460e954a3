"""A version replayed from its recipe: identical, different, or refused with the reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.produce import Production, produce
from flows.replay import SampleError, replay, replay_sample
from models import catalog
from models.attestation import UntrustedError
from models.digests import IntegrityError, json_digest
from models.signature import PROVENANCE_FILE, VERSION_FILE
from models.spec import Gate
from models.trust import PublicKey
from tasks import provenance, signing, tracking
from tasks.export import export, import_folder
from tasks.folders import LocalFolder, StoredFolder
from tasks.land import land
from tasks.promotion import version_folder
from tasks.recorded import CannotReplayError, ChangedEnvironmentError
from tasks.replay import ATTEMPTED_TAG, DiffersError
from tasks.snapshot import raw_prefix
from tasks.store import store
from tasks.verify import proven, verify
from tasks.versions import least_replayed
from tests.conftest import environment, new_bucket, tell_workers
from tests.forger import Forger

LINE = "diabetes"
ROOT = Path(__file__).parent.parent.parent
HALVES = ("first", "second")
GOLDEN = ROOT / "tests" / "golden" / "current" / LINE
PACKAGES = ("models", "tasks", "flows", "deployments")


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
    said = verify(StoredFolder(LINE, first.version.digest))
    assert said.verdict is not None
    assert said.replays[-1].result == "PASSED"


def test_a_replay_leaves_nothing_of_its_own_behind(first: Production) -> None:
    before = {item.key for item in store().list("partitions/")}
    replay(LINE, first.version.number, "clean")
    assert list(store().list("checkpoints/")) == []
    assert {item.key for item in store().list("partitions/")} == before


@pytest.mark.parametrize("stage", ["clean", "train", "evaluate", "compress"])
def test_one_stage_alone_from_its_recorded_inputs(first: Production, stage: str) -> None:
    found = replay(LINE, first.version.number, stage)
    assert (found.verdict, [s.stage for s in found.stages]) == ("identical", [stage])


def test_a_stage_and_all_it_needs_from_raw(first: Production) -> None:
    found = replay(LINE, first.version.number, "train", from_raw=True)
    assert (found.verdict, [s.stage for s in found.stages]) == ("identical", ["clean", "train"])


def test_the_nightly_sample_proves_the_version_proven_longest_ago(first: Production) -> None:
    before = least_replayed(LINE, 100)
    assert first.version.number in before
    assert replay_sample([LINE], each=1) == [
        {"line": LINE, "version": before[0], "verdict": "identical"}
    ]
    assert least_replayed(LINE, 100) == [*before[1:], before[0]]


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


def command(
    *words: str, root: Path = ROOT, seconds: float = 300, alone: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`modelmint` of a checkout in a process of its own, against the same services.

    `alone` is in a process group that can be killed.
    """
    return subprocess.run(
        [sys.executable, "-m", "modelmint", *words, "--json"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        start_new_session=alone,
    )


def checkout(folder: Path) -> Path:
    """A copy of the code, as another release would be."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "modelmint.py", folder)
    return folder


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


def in_prefect(api: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the last replay of the version, and the artifact that its run made."""
    wanted: dict[str, Any] = {
        "flow_runs": {"name": {"any_": [f"replay {LINE} {number}"]}},
        "sort": "START_TIME_DESC",
    }
    run = httpx.post(f"{api}/flow_runs/filter", json=wanted).json()[0]
    asked = {
        "artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": [f"{LINE}-replay"]}}
    }
    [artifact] = httpx.post(f"{api}/artifacts/filter", json=asked).json()
    return run["state"], {**artifact, "data": json.loads(artifact["data"])}


def test_an_identical_replay_is_a_completed_run_with_its_table(
    first: Production, prefect_service: str
) -> None:
    number = first.version.number
    [stage] = replay(LINE, number, "evaluate").stages
    state, artifact = in_prefect(prefect_service, number)
    assert state["type"] == "COMPLETED"
    assert artifact["description"] == f"{LINE} version {number}: identical"
    assert artifact["data"] == [
        {
            "stage": "evaluate",
            "recorded": stage.recorded,
            "replayed": stage.replayed,
            "outcome": "identical",
            "reason": "",
        }
    ]


def test_other_libraries_and_another_processor_are_exit_code_two_and_here_is_compared(
    first: Production, prefect_service: str, tmp_path: Path
) -> None:
    """A version that says other libraries compressed it and another processor evaluated it."""
    folder = tmp_path / "version"
    export(LINE, first.version.number, folder)
    # What was said of it is of the version as it was.
    (folder / "verdict.json").unlink()
    shutil.rmtree(folder / "replays", ignore_errors=True)

    def elsewhere(record: dict[str, Any]) -> None:
        stages = record["body"]["stages"]
        identity = stages["compress"]["identity"]
        identity["distributions"]["onnx"] = "0.1"
        stages["compress"]["key"] = json_digest(identity)
        stages["evaluate"] |= {"digest": "0" * 64, "fingerprint": {"torch": "0" * 64}}

    Forger(folder, proven(LocalFolder(folder))).recipe(elsewhere)
    _, number = import_folder(folder)
    try:
        found = command("replay", LINE, str(number), "--stage", "compress")
        assert found.returncode == 2, found.stderr[-2000:]
        answer = json.loads(found.stdout)
        assert "cannot be replayed here" in answer["error"]
        assert "changed distribution of stage compress: onnx 0.1 -> " in answer["reason"]
        with pytest.raises(ChangedEnvironmentError, match="different numeric platform: torch"):
            replay(LINE, number, "evaluate")
        state, artifact = in_prefect(prefect_service, number)
        assert state["type"] == "FAILED"
        assert "ChangedEnvironmentError: different numeric platform: torch" in state["message"]
        said = f"{LINE} version {number}: cannot be replayed: different numeric platform: torch"
        assert artifact["description"].startswith(said)
        [row] = artifact["data"]
        assert (row["stage"], row["recorded"], row["replayed"]) == ("evaluate", "0" * 64, None)
        assert (row["outcome"], row["reason"][:26]) == ("cannot", "different numeric platform")

        with pytest.raises(DiffersError) as raised:
            replay(LINE, number, "evaluate", here=True)
        here = raised.value.replay
        assert (here.verdict, here.first_difference) == ("differs", "evaluate")
        assert str(here.first_cause).startswith("different numeric platform: torch")
        state, artifact = in_prefect(prefect_service, number)
        assert state["type"] == "FAILED"
        assert f"{LINE} version {number} differs, first in stage evaluate" in state["message"]
        assert ": differs: stage evaluate: different numeric" in artifact["description"]
        [row] = artifact["data"]
        assert (row["recorded"], row["outcome"]) == ("0" * 64, "differs")
        assert row["replayed"] == here.stages[0].replayed
    finally:
        tracking.client().delete_model_version(LINE, str(number))


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


KILLER = """
# ---- takes the locale where it is imported, and kills the run it is part of while it trains, once

import locale
import sys

locale.setlocale(locale.LC_ALL, "")

if sys.argv[1:] == ["tasks.trainer:fit"]:
    import os
    import signal
    from pathlib import Path

    from tasks.checkpoint import Checkpoint

    KEEP = Checkpoint.keep

    def keep(self, place):
        KEEP(self, place)
        mark = Path(__file__).with_name("killed")
        if place.epoch == 7 and not mark.exists():
            mark.touch()
            os.killpg(0, signal.SIGKILL)

    Checkpoint.keep = keep
"""


@pytest.fixture
def both(services: dict[str, str]) -> Iterator[Production]:
    """A version of all the data; refused, so that it is not deployed to the others' server."""
    line, shared = catalog.find(LINE), store().bucket
    with new_bucket() as bucket:
        tell_workers(bucket)
        for part in HALVES:
            land(line, part)
        made = produce(LINE, gate=Gate(floors={"rmse": 0.001}))
        try:
            yield made
        finally:
            tracking.client().delete_model_version(LINE, str(made.version.number))
            tell_workers(shared)


def turkish(folder: Path) -> dict[str, str]:
    """A locale with a decimal comma and another lower case of I; none where nothing defines it."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/tr_TR").exists():
        # Debian has it in the package `locales`.
        return {"LC_ALL": "C"}
    command = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")]
    subprocess.run(command, check=True)
    return {"LC_ALL": "tr_TR.UTF-8", "LOCPATH": str(folder)}


@contextmanager
def busy() -> Iterator[None]:
    """Another process that wants all of the cores this one may use, and gets a part of them."""
    counting = "import os; os.nice(10)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", counting]) as process:
        try:
            yield
        finally:
            process.kill()


def test_nothing_ambient_reaches_the_version_digest(
    both: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkout path, home, user's key, timezone, locale, hash seed, umask, time, worker
    count and working directory, objects that came the other way round, a busy processor, and a run
    that was killed while it trained and run again: the same version digest."""
    other = checkout(tmp_path / "elsewhere")
    lines = shutil.copytree(ROOT / "tests" / "lines", tmp_path / "other lines")
    with (lines / f"{LINE}.py").open("a") as file:
        file.write(KILLER)
    settings = {
        "HOME": str(tmp_path),
        "USER": "somebody",
        "TZ": "Pacific/Auckland",
        **turkish(tmp_path),
        "PYTHONHASHSEED": "4711",
        "MODELMINT_HOME": str(tmp_path / "home"),
        "MODELMINT_KEYS": str(tmp_path / "keys"),
        "MODELMINT_LINES": str(lines),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    # Before the lines are the other ones, whose file would set the locale of this process too.
    spec = catalog.find(LINE)
    umask, cores = os.umask(0o077), os.sched_getaffinity(0)
    try:
        # As many workers as cores.
        os.sched_setaffinity(0, {min(cores)})
        with new_bucket(), environment(**settings), busy():
            # A model server of its own, with keys of its own.
            monkeypatch.delenv("MODELMINT_ENDPOINT")
            monkeypatch.delenv("MODELMINT_API_KEY")
            for part in reversed(HALVES):
                land(spec, part)
            killed = command("run", LINE, root=other, alone=True)
            assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
            [_] = store().list("checkpoints/")
            found = command("run", LINE, root=other)
            assert not list(store().list("checkpoints/"))
    finally:
        os.sched_setaffinity(0, cores)
        os.umask(umask)
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout)
    assert {s["name"] for s in answer["stages"] if s["cached"]} == {"snapshot", "clean"}
    assert answer["digest"] == both.version.digest


def test_a_missing_raw_object_is_exit_code_two(first: Production) -> None:
    key = raw_prefix(catalog.find(LINE).data) + "first.csv"
    content = store().get(key).content
    store().delete(key)
    try:
        found = command("replay", LINE, str(first.version.number))
    finally:
        store().put(key, content)
    assert found.returncode == 2, found.stderr
    answer = json.loads(found.stdout)
    assert "cannot be replayed here" in answer["error"]
    assert "missing raw object" in answer["reason"]
    assert "first.csv" in answer["reason"]


def other_values(content: bytes) -> bytes:
    """A table of the same size with another value in its last row."""
    changed = content[:-3] + (b"7\n" if content[-3:-2] != b"7" else b"8\n")
    return changed.ljust(len(content), b"\n")


def test_an_overwritten_raw_object_is_named(first: Production) -> None:
    """The bucket keeps no versions, so what was read is gone."""
    key = raw_prefix(catalog.find(LINE).data) + "first.csv"
    content = store().get(key).content
    store().put(key, other_values(content))
    try:
        with pytest.raises(CannotReplayError, match=rf"missing object: .*{key} changed since"):
            replay(LINE, first.version.number, "clean")
    finally:
        store().put(key, content)


def test_an_overwritten_raw_object_of_a_versioned_bucket_is_read_as_it_was(
    first: Production,
) -> None:
    line = catalog.find(LINE)
    training = line.training.model_copy(update={"epochs": 1})
    key = raw_prefix(line.data) + "first.csv"
    with new_bucket() as bucket:
        tell_workers(bucket)
        versioning: Any = {"Status": "Enabled"}
        store().client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning)
        land(line)
        # Refused, so that it is not deployed to the server the other tests ask.
        made = produce(LINE, training=training, gate=Gate(floors={"rmse": 0.001}))
        number = made.version.number
        try:
            recorded = store().get(key)
            assert recorded.version
            store().put(key, other_values(recorded.content))
            assert store().get(key).version != recorded.version
            found = replay(LINE, number, "clean")
            assert found.verdict == "identical"
            store().delete(key)
            assert replay(LINE, number, "clean").verdict == "identical"
            store().client.delete_object(Bucket=bucket, Key=key, VersionId=recorded.version)
            with pytest.raises(CannotReplayError, match=rf"missing raw object: .*{key} is gone"):
                replay(LINE, number, "clean")
        finally:
            tracking.client().delete_model_version(LINE, str(number))
            tell_workers(first_bucket(first))


def first_bucket(first: Production) -> str:
    """The bucket that all tests of this package share."""
    return first.version.source.removeprefix("s3://").partition("/")[0]


def test_a_version_signed_by_nobody_trusted_is_exit_code_two(
    first: Production, tmp_path: Path
) -> None:
    strange = {"MODELMINT_KEYS": str(tmp_path)}
    for word in ("replay", "verify"):
        found = command(word, LINE, str(first.version.number), **strange)
        assert found.returncode == 2, found.stderr
        assert "not trusted here" in json.loads(found.stdout)["reason"]


@pytest.mark.parametrize(
    ("name", "before", "after", "error"),
    [
        (VERSION_FILE, b'"epochs":30', b'"epochs":31', IntegrityError),
        (PROVENANCE_FILE, b'"payload":"ey', b'"payload":"eZ', UntrustedError),
    ],
)
def test_an_altered_record_is_refused(
    first: Production, name: str, before: bytes, after: bytes, error: type[Exception]
) -> None:
    key = version_folder(LINE, first.version.digest) + name
    kept = store().get(key).content
    assert before in kept
    store().put(key, kept.replace(before, after))
    try:
        with pytest.raises(error, match="altered"):
            replay(LINE, first.version.number)
    finally:
        store().put(key, kept)
