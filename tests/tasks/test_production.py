"""Production changed by hand, against a real store, MLflow and model server."""

import json
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import pytest

from models.signature import MANIFEST_FILE, VERSION_FILE
from models.version import Recipe
from tasks import tracking
from tasks.deploy import deploy
from tasks.production import catch_up, promote_version, reconsidered, roll_back, told, try_out
from tasks.promotion import promote, promotions, version_folder
from tasks.refs import Artifact, Verdict, Version
from tasks.register import UnknownVersionError, register_import
from tasks.server import DeploymentError
from tasks.store import store
from tests.conftest import environment, new_bucket
from tests.deployments.serving.server import Server
from tests.deployments.serving.versions import table_version

_lines = (f"line-{number}" for number in count(1))


@pytest.fixture(scope="module")
def server(store_service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model server that reads a bucket of this module's."""
    with new_bucket():
        running = Server(tmp_path_factory.mktemp("server") / "repository", "--workers", "2")
        endpoint = f"http://127.0.0.1:{running.port}"
        try:
            with environment(MODELMINT_ENDPOINT=endpoint, MODELMINT_API_KEY=running.key):
                yield running
        finally:
            running.stop()


class Registered(NamedTuple):
    """A line of the test's own and the digests of its versions 1, 2 and 3."""

    line: str
    digests: list[str]


@pytest.fixture
def registered(server: Server) -> Registered:
    line, digests = next(_lines), []
    for number in (1, 2, 3):
        version = table_version(10.0 * number, line=line)
        for name, content in version.files.items():
            store().put(version_folder(line, version.digest) + name, content)
        recipe = Recipe.model_validate(json.loads(version.files[VERSION_FILE])["body"])
        assert register_import(recipe, None) == number
        digests.append(version.digest)
    return Registered(line, digests)


def alias(line: str) -> str:
    return str(tracking.client().get_model_version_by_alias(line, "champion").version)


def verdict(decision: str = "promote") -> Verdict:
    return Verdict.model_validate(
        {"digest": "0" * 64, "decision": decision, "reasons": ("sound",), "metrics": {}}
    )


def test_promote_roll_back_and_what_follows(server: Server, registered: Registered) -> None:
    line, digests = registered
    with pytest.raises(UnknownVersionError):
        promote_version(line, 4, "")
    one, two, _ = digests
    assert promote_version(line, 1, "the first")["replaced"] == 0
    found = promote_version(line, 2, "better")
    assert (found["replaced"], found["digest"]) == (1, two)
    assert found["by"].startswith("first (key ")
    record = promotions(line)
    assert [(e.number, e.kind, e.why) for e in record.history] == [
        (1, "promote", "the first"), (2, "promote", "better"),
    ]  # fmt: skip
    assert reconsidered(line, two, verdict()) == verdict()

    back = roll_back(line, None, "it drifts")
    assert (back["version"], back["replaced"], back["digest"]) == (1, 2, one)
    catch_up(line)
    assert alias(line) == "1"
    record = promotions(line)
    assert "brought back on" in told(record, one)
    assert told(record, two).startswith("rolled back on ")
    assert "it drifts" in told(record, two)
    held = reconsidered(line, two, verdict())
    assert held.decision == "hold"
    assert "it drifts; promote it by hand, or land new data" in held.reasons[0]
    assert held.reasons[1:] == ("sound",)
    assert reconsidered(line, two, verdict("refuse")).decision == "refuse"
    assert reconsidered(line, digests[2], verdict()).decision == "promote"

    promote_version(line, 2, "it did not")
    assert reconsidered(line, two, verdict()).decision == "promote"
    assert told(promotions(line), two).startswith("in production: promoted on ")
    assert told(promotions(line), one).startswith("replaced on ")


def test_a_run_promotes_nothing_that_was_rolled_back_while_it_ran(
    server: Server, registered: Registered
) -> None:
    line, digests = registered
    promote_version(line, 1, "")
    promote_version(line, 2, "")
    roll_back(line, None, "late")
    version = Version(
        digest=digests[1], line=line, number=2, artifact="0" * 64,
        source=store().uri(version_folder(line, digests[1])), run="",
    )  # fmt: skip
    artifact = Artifact.model_validate(
        {"digest": "0" * 64, "manifest": {"files": {}}, "chosen": "fp32", "candidates": (),
         "within_budget": True}
    )  # fmt: skip
    judged = verdict().model_copy(update={"comparison": None})
    with pytest.raises(DeploymentError, match="became champion after|was rolled back"):
        deploy.bare(version, artifact, judged)
    held = deploy.bare(version, artifact, verdict("refuse"))
    assert held.serving == 1


def test_a_promotion_that_the_server_refuses_changes_nothing(
    server: Server, registered: Registered
) -> None:
    line, digests = registered
    promote_version(line, 1, "")
    key = version_folder(line, digests[2]) + MANIFEST_FILE
    store().put(key, store().get(key).content[:-1])
    before = promotions(line)
    with pytest.raises(DeploymentError, match="422"):
        promote_version(line, 3, "")
    assert promotions(line) == before
    # What was interrupted between the record and the server is mended by asking again.
    promote(line, 2, digests[1])
    assert promote_version(line, 2, "")["replaced"] == 1
    assert server.ask("GET", f"/v2/models/{line}").headers["modelmint-version"] == "2"


def test_a_trial_loads_what_it_tries(server: Server, registered: Registered) -> None:
    line = registered.line
    promote_version(line, 1, "")
    assert try_out(line, "canary", 2, percent=50.0, by=None)["canary"]["percent"] == 50
    assert try_out(line, "shadow", 3)["shadow"]["version"] == "3"
    with pytest.raises(DeploymentError, match="409"):
        try_out(line, "canary", 1, percent=50.0)
