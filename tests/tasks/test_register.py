import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.digests import json_digest
from models.signature import MODEL_FILE, VERSION_FILE
from tasks import tracking
from tasks.dataset import tensors
from tasks.inference import predict, session
from tasks.promotion import version_folder
from tasks.refs import Verdict, Version
from tasks.snapshot import raw_prefix
from tasks.store import store
from tasks.versions import versions
from tests.tasks import samples
from tests.tasks.conftest import Trained, recipe_of, registered, snapshot

ROOT = Path(__file__).resolve().parents[2]
RACE = """
import json
import sys
from models.version import Recipe
from tasks.refs import Artifact, Report, Snapshot, Verdict
from tasks.register import register
recipe, prefix, *texts = json.loads(sys.argv[1])
kinds = (Snapshot, Artifact, Report, Verdict)
refs = [kind.model_validate_json(text) for kind, text in zip(kinds, texts, strict=True)]
import mlflow.onnx
print("ready", flush=True)
sys.stdin.readline()
version = register.bare(Recipe.model_validate_json(recipe), prefix, *refs)
print(version.model_dump_json())
"""


def test_two_processes_with_the_same_recipe_register_one_version(
    trained: Trained, verdict: Verdict
) -> None:
    refs = (snapshot(samples.TRIPS), trained.artifact, trained.report, verdict)
    recipe = recipe_of("race", trained).model_dump_json()
    job = json.dumps([recipe, raw_prefix(samples.TRIPS), *(ref.model_dump_json() for ref in refs)])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, job],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    said = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        said.append(Version.model_validate_json(racer.communicate()[0]))
    assert said[0].digest == said[1].digest
    assert [version.number for version in said] == [1, 1]
    assert sorted(bool(version.observed["unchanged"]) for version in said) == [False, True]
    assert len(tracking.client().search_model_versions("name = 'race'")) == 1


def test_mlflow_loads_a_version_and_it_predicts(trained: Trained, verdict: Verdict) -> None:
    import mlflow.pyfunc

    version = registered("loadable", trained, verdict)
    rows, _ = tensors(trained.dataset, "test")
    model = mlflow.pyfunc.load_model(f"models:/loadable/{version.number}")
    content = store().get_file(trained.artifact.manifest, MODEL_FILE)
    (answer,) = model.predict(rows).values()
    np.testing.assert_allclose(answer, predict(session(content), rows), rtol=1e-5)


def test_another_recipe_is_another_version_of_the_line(trained: Trained, verdict: Verdict) -> None:
    first, second, again = (registered("growing", trained, verdict, seed) for seed in (1, 2, 1))
    assert [first.number, second.number, again.number] == [1, 2, 1]
    assert (first.digest, first.run) == (again.digest, again.run)
    assert first.digest != second.digest
    assert [again.observed["unchanged"], second.observed["unchanged"]] == [True, False]
    listed = versions("growing")
    assert [entry["version"] for entry in listed] == [1, 2]
    assert listed[0]["metrics"]["rmse"] == pytest.approx(verdict.metrics["rmse"])


def test_the_files_of_a_version_prove_its_digest(trained: Trained, verdict: Verdict) -> None:
    version = registered("proven", trained, verdict)
    folder = version_folder("proven", version.digest)
    assert version.source == store().uri(folder)
    record = json.loads(store().get(folder + VERSION_FILE).content)
    assert record["digest"] == version.digest == json_digest(record["body"])
    assert record["body"]["artifact"] == trained.artifact.digest
    for name in trained.artifact.manifest.files:
        trained.artifact.manifest.check(name, store().get(folder + name).content)


def test_a_new_verdict_of_a_known_version_is_recorded(trained: Trained, verdict: Verdict) -> None:
    registered("judged", trained, verdict)
    held = verdict.model_copy(update={"decision": "hold", "reasons": ("too slow",)})
    registered("judged", trained, held)
    (found,) = tracking.client().search_model_versions("name = 'judged'")
    assert found.tags["modelmint.verdict"] == "hold"
    assert found.tags["modelmint.reasons"] == "too slow"
