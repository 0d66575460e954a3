"""Run a replay with the code, and if wanted the distributions, that a version was made with.

The signed provenance names both: the text of the code by its digest, and every distribution. The
other release is another process; all it shares with this one is its command line and the services.
"""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from packaging.utils import canonicalize_name

from models.catalog import SETTING
from models.digests import json_digest
from models.version import Verified
from tasks import provenance, source
from tasks.cluster import ADDRESS_SETTING
from tasks.recorded import CannotReplayError
from tasks.replay import Replay
from tasks.store import MissingError

ENVIRONMENTS_SETTING = "MODELMINT_ENVIRONMENTS"
HOME_SETTING = "MODELMINT_HOME"
# Set in the process of a recorded release, which must not look for yet another one.
INSIDE_SETTING = "MODELMINT_CHECKOUT"


def inside() -> bool:
    """Whether this process is the recorded release of another one."""
    return bool(os.environ.get(INSIDE_SETTING))


def replayed(
    found: Verified, version: int, stage: str | None, *, from_raw: bool, install: bool
) -> Replay:
    """Replay with the recorded code: what that release says; raises CannotReplayError."""
    arguments = [found.recipe.line, str(version)]
    # Only what was asked for: an older release may not know every option.
    arguments += ["--stage", stage] if stage else []
    arguments += ["--from-raw"] if from_raw else []
    with tempfile.TemporaryDirectory(prefix="modelmint-") as name:
        folder = Path(name)
        source.extract(_text(found), folder)
        python = environment(recorded_lock(found)) if install else Path(sys.executable)
        variables = {
            # Workers of its own: those of a shared cluster run other code.
            **{n: v for n, v in os.environ.items() if n != ADDRESS_SETTING},
            "PYTHONPATH": str(folder),
            "PYTHONSAFEPATH": "1",
            SETTING: str(folder / source.LINES) if (folder / source.LINES).exists() else "",
            INSIDE_SETTING: "1",
        }
        ended = subprocess.run(
            [str(python), "-m", source.COMMAND, "replay", *arguments, "--json"],
            cwd=folder, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
    try:
        answer = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise CannotReplayError(
            f"the recorded code ended without an answer: {ended.stderr.strip()[-600:]}"
        ) from None
    if "stages" not in answer:
        said = answer.get("reason") or answer.get("error")
        raise CannotReplayError(f"the recorded code says: {said}")
    return Replay.model_validate({**answer, "code": "the recorded code"})


def recorded_lock(found: Verified) -> dict[str, str]:
    """What to install, by name: the version of all that was installed, and of what stages stand on.

    Earlier releases left setuptools out of the first, and compared it all the same.
    """
    installed = found.provenance.lock()
    known = {canonicalize_name(name) for name in installed}
    stages = found.recipe.stages.values()
    counted = {n: v for stage in stages for n, v in stage.identity.distributions.items()}
    return installed | {name: v for name, v in counted.items() if name not in known}


def environment(lock: dict[str, str]) -> Path:
    """A Python with exactly the locked distributions, made once; raises CannotReplayError.

    Kept below MODELMINT_ENVIRONMENTS (default `environments` in MODELMINT_HOME), by the lock's
    digest.
    """
    home = Path(os.environ.get(HOME_SETTING, ".modelmint"))
    root = Path(os.environ.get(ENVIRONMENTS_SETTING, home / "environments")).resolve()
    folder = root / json_digest(lock)[:16]
    root.mkdir(parents=True, exist_ok=True)
    # A lock and no renaming: scripts of an environment name the folder it was made in.
    with folder.with_suffix(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            _install(lock, folder)
    return folder / "bin" / "python"


def _install(lock: dict[str, str], folder: Path) -> None:
    """Make the environment, in place of what one that was killed left of it."""
    venv.create(folder, with_pip=True, clear=True)
    # The build of a wheel (`+cpu`) is the index's to choose, and the replay compares it.
    wanted = "\n".join(f"{name}=={version.partition('+')[0]}" for name, version in lock.items())
    (folder / "requirements.txt").write_text(wanted)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "-r"]
    found = subprocess.run(
        [*command, str(folder / "requirements.txt")], capture_output=True, text=True, check=False
    )
    if found.returncode:
        errors = [line for line in found.stderr.splitlines() if line.startswith("ERROR")]
        said = errors[0] if errors else found.stderr.strip()[-300:]
        raise CannotReplayError(f"the lock cannot be installed: {said}")
    (folder / "installed").touch()


def _text(found: Verified) -> bytes:
    try:
        return provenance.text_of_code(found.provenance)
    except MissingError as error:
        raise CannotReplayError(f"missing text of the code: {error}") from None
