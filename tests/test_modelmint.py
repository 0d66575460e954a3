"""The command line as a user runs it: separate processes that share the services of one home."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.local.stack import PREFECT, SERVER, STORE, stack

ROOT = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Run `modelmint` with a home of its own, whose services stay up between the commands."""
    home = tmp_path_factory.mktemp("home")
    ours = {"MODELMINT_HOME": str(home), "MODELMINT_LINES": str(ROOT / "tests" / "lines")}
    before = dict(os.environ)
    # Services that other tests of this session use are not for these.
    for name in before:
        if name.startswith(("AWS_", "MLFLOW_", "MODELMINT_", "PREFECT_")):
            del os.environ[name]
    os.environ.update(ours)

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modelmint", *words],
            cwd=ROOT,
            env={**os.environ, **ours, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    with stack(STORE, PREFECT, SERVER):
        # Each command finds the services itself, as it would in a shell.
        for name in ("AWS_ENDPOINT_URL", "PREFECT_API_URL", "MODELMINT_ENDPOINT"):
            del os.environ[name]
        yield run
    os.environ.clear()
    os.environ.update(before)


def answer(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object on standard output."""
    assert found.returncode == 0, found.stderr[-2000:] + found.stdout[-500:]
    [line] = found.stdout.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def produced(command: Command) -> dict[str, Any]:
    """The answer of the first run of the third line."""
    landed = answer(command("land", "diabetes", "--json"))
    assert [item["object"] for item in landed["landed"]] == ["first.csv"]
    return answer(command("run", "diabetes", "--set", "training.epochs=20", "--json"))


def test_lines_names_the_shipped_and_the_added(command: Command) -> None:
    names = [line["name"] for line in answer(command("lines", "--json"))["lines"]]
    assert names == [
        "chimes", "cifar", "diabetes", "digits", "fashion", "flights", "prose", "reviews", "speech",
        "verses", "wines",
    ]  # fmt: skip


def test_run_answers_with_version_metrics_and_stages(produced: dict[str, Any]) -> None:
    assert produced["line"] == "diabetes"
    assert produced["version"] == 1
    assert produced["verdict"] == "promote"
    assert produced["endpoint"].endswith("/v2/models/diabetes")
    assert set(produced["metrics"]) == {"rmse", "mae"}
    for stage in produced["stages"]:
        assert {"name", "key", "digest", "cached", "seconds"} <= set(stage)
        assert len(stage["key"]) == len(stage["digest"]) == 64


def test_a_second_run_is_the_same_version(command: Command, produced: dict[str, Any]) -> None:
    again = answer(command("run", "diabetes", "--set", "training.epochs=20", "--json"))
    assert all(stage["cached"] for stage in again["stages"])
    assert (again["version"], again["digest"]) == (produced["version"], produced["digest"])


def test_versions_lists_it(command: Command, produced: dict[str, Any]) -> None:
    [version] = answer(command("versions", "diabetes", "--json"))["versions"]
    assert version["digest"] == produced["digest"]
    assert version["champion"]
    assert version["metrics"]["rmse"] == pytest.approx(produced["metrics"]["rmse"])


def test_predict_reads_json_and_csv(
    command: Command, produced: dict[str, Any], tmp_path: Path
) -> None:
    record = {"age": 0.03, "bmi": 0.06, "bp": 0.02, "s5": 0.01, "sex": "a"}
    (tmp_path / "one.json").write_text(json.dumps(record))
    found = answer(command("predict", "diabetes", str(tmp_path / "one.json"), "--json"))
    assert found["digest"] == produced["digest"]
    names, values = zip(*record.items(), strict=True)
    rows = [",".join(names), *[",".join(map(str, values))] * 3]
    (tmp_path / "three.csv").write_text("\n".join(rows))
    three = answer(command("predict", "diabetes", str(tmp_path / "three.csv"), "--json"))
    assert three["predictions"] == found["predictions"] * 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "nothing"], "no line is called 'nothing'; there are chimes, cifar, diabetes"),
        (["run", "digits"], "raw/digits/ is empty"),
        (["run", "digits", "--set", "training.epoch=3"], "no setting 'training.epoch'"),
        (["run", "digits", "--set", "training.epochs=0"], "greater than or equal to 1"),
        (["run", "digits", "--set", "model.size=huge"], "'tiny', 'small', 'base'"),
        (["land", "flights", "--slice", "2014-01"], "no slice '2014-01'"),
        (["predict", "digits", "LICENSE"], "digits"),
        (["predict", "digits", "three.png"], "modelmint: three.png: No such file or directory"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    command: Command, words: list[str], expected: str
) -> None:
    found = command(*words)
    assert found.returncode == 1
    assert expected in found.stderr
    assert "Traceback" not in found.stderr


def test_an_error_as_json_is_one_object(command: Command) -> None:
    found = command("run", "digits", "--json")
    assert found.returncode == 1
    assert "raw/digits/ is empty" in json.loads(found.stdout)["error"]


def test_a_store_that_does_not_answer_is_named(command: Command) -> None:
    nowhere = "http://127.0.0.1:9"
    found = command(
        "versions", "diabetes",
        AWS_ENDPOINT_URL=nowhere, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b",
        AWS_REGION="us-east-1",
    )  # fmt: skip
    assert found.returncode == 1
    assert nowhere in found.stderr
    assert "does not answer" in found.stderr


def documented() -> list[list[str]]:
    """Every `modelmint` command of the README, with the third line for the shipped ones."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("modelmint")]
    swapped = {
        "flights": "diabetes", "digits": "diabetes", "three.png": "record.json",
        "raw/flights/": "raw/diabetes/",
    }  # fmt: skip
    # Those of the whole stack are run in tests/deployments/local/test_supervisor.py.
    elsewhere = {"serve", "up", "status", "logs", "restart", "down"}
    return [[swapped.get(w, w) for w in words] for words in found if words[0] not in elsewhere]


# Commands one after the other, each as `modelmint` runs it. In one process, since thirty would
# spend two minutes on imports; the other tests here have a process a command.
IN_TURN = """
import contextlib, io, json, sys
import modelmint

for words in json.load(sys.stdin):
    said, sys.argv = io.StringIO(), ["modelmint", *words]
    try:
        with contextlib.redirect_stdout(said):
            modelmint.main()
    except SystemExit as ended:
        print(json.dumps([words, ended.code or 0, said.getvalue()]), flush=True)
"""


def test_the_commands_of_the_readme_work(produced: dict[str, Any], tmp_path: Path) -> None:
    record = {"age": 0.03, "bmi": 0.06, "bp": 0.02, "s5": 0.01, "sex": "a"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    commands = documented()
    assert {words[0] for words in commands} == {
        "lines", "land", "run", "search", "versions", "predict",
        "verify", "replay", "compare", "export", "trust", "import",
        "keys", "usage", "audit", "promote", "rollback", "canary", "shadow", "lineage",
        "score", "monitor",
    }  # fmt: skip
    asked = []
    for words in commands:
        if words[0] == "replay":
            # In tests/flows/test_replay.py, where it costs one training and not two.
            continue
        if words == ["run", "diabetes"]:
            words = [*words, "--set", "training.epochs=20"]  # noqa: PLW2901
        if words[0] == "search":
            words = [*words, "--trials", "2", "--set", "training.epochs=2"]  # noqa: PLW2901
        ours = ("record.json", "exported", "exported/key.json")
        if words[0] == "lineage":
            # The README's is the digest of another line's version.
            words = [words[0], produced["digest"][:16]]  # noqa: PLW2901
        asked.append([str(tmp_path / w) if w in ours else w for w in words])
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN],
        input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, _, _ in answers] == asked, done.stderr[-1500:]
    for words, code, said in answers:
        assert code == 0, (words, done.stderr[-1500:])
        assert said.strip(), words
    assert produced["version"] == 1


def test_serve_brings_the_champion_back_and_ends_cleanly(
    command: Command, produced: dict[str, Any]
) -> None:
    del command
    with subprocess.Popen(
        [sys.executable, "-m", "modelmint", "serve", "--workers", "2", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        endpoint = json.loads(process.stdout.readline())["endpoint"]
        key = (Path(os.environ["MODELMINT_HOME"]) / "api-key").read_text()
        bearer = {"authorization": f"Bearer {key}"}
        ready = httpx.get(f"{endpoint}/v2/models/diabetes/ready", headers=bearer)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert ready.json()["ready"]
    assert int(ready.json()["version"]) >= produced["version"]
