"""Golden versions: made once, kept in git, proven by every later release.

Those in `current` must come out of this code bit for bit; when that is changed on purpose they move
to `earlier`, and are made again by the code they bring. See tests/golden/make.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from models.trust import PublicKey
from tests.conftest import environment, new_bucket

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = [path for age in ("current", "earlier") for path in sorted((GOLDEN / age).glob("*"))]
# Each starts a process of its own for the recorded code; `make slow` runs them all.
QUICK = {
    GOLDEN / age / line
    for age, line in (("current", "digits"), ("current", "diabetes"), ("earlier", "diabetes"))
}


@pytest.fixture(scope="module")
def site(
    prefect_service: str, dask_service: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A place that has never seen a version: its own bucket, registry and keys."""
    from tasks import cluster, signing

    del prefect_service, dask_service
    home = tmp_path_factory.mktemp("site")
    ours = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "MODELMINT_KEYS": str(home / "keys"),
        "MODELMINT_LINES": str(GOLDEN.parent / "lines"),
    }
    # Workers read these when they start.
    cluster.close()
    with environment(**ours), new_bucket():
        for folder in FOLDERS:
            signing.add(PublicKey.model_validate_json((folder / "key.json").read_bytes()))
        yield
        cluster.close()


def test_there_are_golden_versions_of_every_family() -> None:
    bodies = [
        json.loads((folder / "version.json").read_bytes())["body"]
        for folder in (GOLDEN / "current").iterdir()
    ]
    families = {body["settings"]["model"]["type"].partition(":")[0] for body in bodies}
    assert families == {"models.cnn", "models.mlp", "models.rnn", "models.transformer"}


def name(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_golden_version_verifies(site: None, folder: Path) -> None:
    from tasks.folders import LocalFolder
    from tasks.verify import verify

    assert verify(LocalFolder(folder)).line == folder.name


@pytest.mark.parametrize(
    "folder",
    [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in FOLDERS],
    ids=name,
)
def test_a_golden_version_comes_out_the_same(site: None, folder: Path) -> None:
    from flows.replay import replay
    from tasks.export import import_folder
    from tasks.folders import StoredFolder
    from tasks.recorded import ChangedEnvironmentError
    from tasks.replay import DiffersError
    from tasks.verify import verify

    exported, number = import_folder(folder)
    try:
        found = replay(folder.name, number, here=folder.parent.name == "current")
    except (ChangedEnvironmentError, DiffersError) as error:
        not_the_same(folder, str(error))
    # What the committed file says, and not what the replay says it says.
    recorded = json.loads((folder / "version.json").read_bytes())["body"]["stages"]
    assert {stage.stage: stage.replayed for stage in found.stages} == {
        name: stage["digest"] for name, stage in recorded.items()
    }
    *_, said = verify(StoredFolder(folder.name, exported.digest)).replays
    assert said.result == "PASSED"


def not_the_same(folder: Path, reason: str) -> NoReturn:
    """Skip where another processor rounds otherwise; on the same one, a change of ours does."""
    from tasks import provenance
    from tasks.folders import LocalFolder
    from tasks.verify import proven

    signed = proven(LocalFolder(folder)).provenance.run_details.modelmint_machine.processor
    here = provenance.machine()["processor"]
    if here == signed or "different numeric platform" not in reason:
        pytest.fail(reason)
    pytest.skip(f"verified, not proven on {here}, it was made on {signed}: {reason}")
