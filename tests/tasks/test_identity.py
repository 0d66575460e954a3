import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import mlp
from models.open import Frozen
from models.spec import Training
from tasks.identity import stage_identity, stage_key
from tasks.refs import Listing

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "0" * 64

# A package of stages as small as can be: work -> helper -> deep, and a function given as argument.
STAGES = """
'''Stages.'''
from shop.helper import help_out

def work(**arguments):
    '''Work.'''
    return help_out(arguments)
"""
HELPER = """
from typing import TYPE_CHECKING

import fancy
from shop import deep

if TYPE_CHECKING:
    from shop import typed
if not TYPE_CHECKING:
    from shop import untyped

def help_out(x):
    # A comment.
    return deep.dive(x)
"""
DEEP = """
FACTOR = 2

def dive(x):
    return x * FACTOR
"""
LINE = """
from shop.used import used_by_clean
import shop.used_by_gate

LIMIT = 3
GATE = {"rmse": 12}

def _inner(x):
    return x + LIMIT

def clean(rows):
    '''Clean.'''
    return used_by_clean(_inner(rows))

def load(part):
    return part

line = (clean, GATE, shop.used_by_gate.nothing)
"""
FILES = {
    "shop/__init__.py": "",
    "shop/stages.py": STAGES,
    "shop/helper.py": HELPER,
    "shop/deep.py": DEEP,
    "shop/line.py": LINE,
    "shop/used.py": "def used_by_clean(x):\n    return x\n",
    "shop/used_by_gate.py": "nothing = 0\n",
    "shop/typed.py": "Kind = int\n",
    "shop/untyped.py": "Kind = int\n",
    "fancy/__init__.py": "",
    "fancy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fancy\nVersion: 1.0\n",
    "fancy-1.0.dist-info/top_level.txt": "fancy\n",
    "fancy-1.0.dist-info/RECORD": "fancy/__init__.py,,\n",
}
PROGRAM = """
import json
{before}
from tasks.identity import stage_key
from shop import stages, line
print(json.dumps([
    stage_key("work", stages.work, {{"a": 1}}),
    stage_key("work", stages.work, {{"a": 1, "function": line.clean}}),
]))
"""


def keys(folder: Path, *, before: str = "", cwd: Path = ROOT, **variables: str) -> list[str]:
    """The keys of `work` without and with the line's clean function, in a new process."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def unchanged(shop: Path) -> list[str]:
    return keys(shop)


def edited(shop: Path, goal: Path, name: str, old: str, new: str) -> list[str]:
    shutil.copytree(shop, goal, ignore=shutil.ignore_patterns("__pycache__"))
    text = (goal / name).read_text()
    assert old in text
    (goal / name).write_text(text.replace(old, new))
    return keys(goal)


@pytest.mark.parametrize(
    ("name", "old", "new", "stage", "with_clean"),
    [
        ("shop/stages.py", "return help_out", "return 2 * help_out", True, True),
        ("shop/helper.py", "dive(x)", "dive(x + 1)", True, True),
        ("shop/deep.py", "FACTOR = 2", "FACTOR = 3", True, True),
        ("fancy-1.0.dist-info/METADATA", "Version: 1.0", "Version: 1.1", True, True),
        ("shop/line.py", "return used_by_clean(", "return 2 * used_by_clean(", False, True),
        ("shop/line.py", "return x + LIMIT", "return x - LIMIT", False, True),
        ("shop/line.py", "LIMIT = 3", "LIMIT = 4", False, True),
        ("shop/used.py", "return x", "return x + 1", False, True),
        ("shop/line.py", '{"rmse": 12}', '{"rmse": 13}', False, False),
        ("shop/line.py", "return part", "return part * 2", False, False),
        ("shop/used_by_gate.py", "nothing = 0", "nothing = 1", False, False),
        ("shop/typed.py", "Kind = int", "Kind = float", False, False),
        ("shop/untyped.py", "Kind = int", "Kind = float", True, True),
        ("shop/helper.py", "# A comment.", "# Another.\n\n", False, False),
        ("shop/stages.py", "'''Work.'''", "'''Other words.'''", False, False),
        ("shop/stages.py", "'''Stages.'''", "", False, False),
        ("shop/deep.py", "x * FACTOR", "(x\n        * FACTOR)", False, False),
        ("shop/line.py", "'''Clean.'''", "'''Other words.'''", False, False),
    ],
)
def test_an_edit_counts_where_it_can_change_a_result(
    shop: Path, unchanged: list[str], tmp_path: Path,
    name: str, old: str, new: str, stage: bool, with_clean: bool,
) -> None:  # fmt: skip
    found = edited(shop, tmp_path / "shop", name, old, new)
    changed = [a != b for a, b in zip(found, unchanged, strict=True)]
    assert changed == [stage, with_clean]


def test_keys_depend_on_neither_process_nor_place_nor_order(
    shop: Path, unchanged: list[str], tmp_path: Path
) -> None:
    assert keys(shop, PYTHONHASHSEED="1") == unchanged
    assert keys(shop, PYTHONHASHSEED="2", cwd=tmp_path) == unchanged
    order = "import tasks.gate, models.lines.flights, shop.used_by_gate, shop.deep, shop.line"
    assert keys(shop, before=order) == unchanged


TRAINED = {"train", "compress"}
REPOSITORY = """
import json
from models import catalog
from tasks.identity import stage_identity
from tasks.clean import clean
from tasks.refs import Dataset, Snapshot
from tasks.train import train
from tasks.compress import compress
from tasks.identity import stage_key
line = catalog.find("flights")
print(json.dumps({
    "clean": stage_key("clean", clean.function, {"data": line.data, "objective": line.objective}),
    "train": stage_key("train", train.function, {"model": line.model, "training": line.training}),
    "compress": stage_key("compress", compress.function, {"budget": line.budget}),
}))
"""


def project_keys(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", REPOSITORY],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the project to edit, and its keys."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("models", "tasks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder, project_keys(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("models/layers.py", "clamp(-8.0, 8.0)", "clamp(-9.0, 9.0)", TRAINED),
        ("models/spec.py", "warmup: float = Field(0.1", "warmup: float = Field(0.2", TRAINED),
        ("tasks/candidates.py", "OPSET = 20", "OPSET = 19", {"compress"}),
        ("models/lines/flights.py", '"rmse": 10.8', '"rmse": 11.0', set()),
        ("models/lines/flights.py", "60 + pl.col", "61 + pl.col", {"clean"}),
        ("tasks/store.py", '"content/', '"contents/', set()),
    ],
)
def test_edits_of_this_project_reach_the_stages_they_concern(
    checkout: tuple[Path, dict[str, str]], name: str, old: str, new: str, changed: set[str]
) -> None:
    folder, before = checkout
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    try:
        after = project_keys(folder)
    finally:
        (folder / name).write_text(text)
    assert {stage for stage in before if before[stage] != after[stage]} == changed


# ---- arguments


def work(**arguments: Any) -> None:
    del arguments


class Setting(Frozen):
    value: float = 0.0


def key(**arguments: Any) -> str:
    return stage_key("work", work, arguments)


def test_every_argument_counts() -> None:
    listing = Listing(digest=DIGEST, objects=1, size=1)
    different: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"b": 1},
        {"a": None},
        {"a": "1"},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": {"x": 1}},
        {"a": Setting()},
        {"a": Setting(value=1)},
        {"a": mlp.Spec(size="tiny")},
        {"a": mlp.Spec(size="base")},
        {"a": Training(seed=1)},
        {"a": Training(seed=2)},
        {"a": listing},
        {"a": listing.model_copy(update={"digest": "1" * 64})},
    ]
    assert len({key(**arguments) for arguments in different}) == len(different)
    assert stage_key("work", work, {}) != stage_key("play", work, {})


def test_what_was_only_observed_does_not_count() -> None:
    listing = Listing(digest=DIGEST, objects=1, size=1)
    seen = listing.model_copy(update={"observed": {"seconds": 3}, "stored": ("x",)})
    assert key(a=listing) == key(a=seen)


def test_the_order_of_arguments_does_not_count() -> None:
    assert key(a=1, b={"x": 1, "y": 2}) == key(b={"y": 2, "x": 1}, a=1)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", Path("x"), len])
def test_an_argument_without_identity_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="has no identity"):
        key(a=value)


def test_an_identity_can_be_read() -> None:
    identity = stage_identity("work", work, {"spec": mlp.Spec(size="tiny")})
    assert identity["arguments"]["spec"]["size"] == "tiny"
    assert {"models.mlp", "models.layers", __name__} <= set(identity["code"])
    assert "torch" in identity["distributions"]
    assert not {"prefect", "mlflow", "distributed", "boto3"} & set(identity["distributions"])
    json.dumps(identity)
