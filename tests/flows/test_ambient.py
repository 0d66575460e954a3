"""Where and as whom a version is made reaches no digest."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.produce import Production, produce
from models import catalog
from models.spec import Gate
from tasks import tracking
from tasks.land import land
from tasks.store import store
from tests.conftest import ROOT, environment, new_bucket, tell_workers
from tests.flows.elsewhere import checkout, command

LINE = "diabetes"
HALVES = ("first", "second")


LOCALE = """
# ---- takes the locale where it is imported

import locale

locale.setlocale(locale.LC_ALL, "")
"""
KILLER = """
# ---- and kills the run it is part of while it trains, once

import sys

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


@contextmanager
def another(folder: Path) -> Iterator[Path]:
    """Another user, at another place in the world, who may use one core: the folder of the lines.

    Once it is entered, the lines of this process are the other ones.
    """
    lines = shutil.copytree(ROOT / "tests" / "lines", folder / "other lines")
    add(lines, LOCALE)
    settings = {
        "HOME": str(folder),
        "USER": "somebody",
        "TZ": "Pacific/Auckland",
        **turkish(folder),
        "PYTHONHASHSEED": "4711",
        "MODELMINT_HOME": str(folder / "home"),
        "MODELMINT_LINES": str(lines),
    }
    umask, cores = os.umask(0o077), os.sched_getaffinity(0)
    try:
        # As many workers as cores.
        os.sched_setaffinity(0, {min(cores)})
        with environment(**settings):
            yield lines
    finally:
        os.sched_setaffinity(0, cores)
        os.umask(umask)


def add(lines: Path, code: str) -> None:
    """Have the line's file do something when it is imported."""
    with (lines / f"{LINE}.py").open("a") as file:
        file.write(code)


@pytest.mark.slow
def test_another_user_elsewhere_replays_the_same_bits(first: Production, tmp_path: Path) -> None:
    """The sample of what is below: no kill, and no stage after the training."""
    other, number = checkout(tmp_path / "elsewhere"), str(first.version.number)
    with another(tmp_path):
        found = command("replay", LINE, number, "--stage", "train", "--from-raw", root=other)
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout)
    assert (answer["verdict"], answer["code"]) == ("identical", "this checkout")
    recorded = {stage.name: stage.digest for stage in first.stages}
    assert [(stage["stage"], stage["replayed"]) for stage in answer["stages"]] == [
        (name, recorded[name]) for name in ("clean", "train")
    ]


@pytest.mark.slow
def test_nothing_ambient_reaches_the_version_digest(
    both: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkout path, home, user's key, timezone, locale, hash seed, umask, time, worker
    count and working directory, objects that came the other way round, a busy processor, and a run
    that was killed while it trained and run again: the same version digest."""
    other, spec = checkout(tmp_path / "elsewhere"), catalog.find(LINE)
    ours = {
        "MODELMINT_KEYS": str(tmp_path / "keys"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    with another(tmp_path) as lines, new_bucket(), environment(**ours), busy():
        add(lines, KILLER)
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
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout)
    assert {s["name"] for s in answer["stages"] if s["cached"]} == {"snapshot", "clean"}
    assert answer["digest"] == both.version.digest
