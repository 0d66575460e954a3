"""Imports run one way: flows -> tasks -> models, and nothing imports deployments."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "tasks": {"tasks", "models"},
    "flows": {"flows", "tasks", "models"},
    # The laptop stack starts flows; what it serves with knows models only (see below).
    "deployments": {"deployments", "flows", "tasks", "models"},
    "deployments/serving": {"deployments", "models"},
}
FIRST_PARTY = {"models", "tasks", "flows", "deployments", "modelmint"}


def files(folder: str) -> list[Path]:
    """All Python files of a folder, less those of a stricter one inside it."""
    inner = [ROOT / other for other in ALLOWED if other.startswith(f"{folder}/")]
    found = sorted((ROOT / folder).rglob("*.py"))
    return [p for p in found if not any(p.is_relative_to(i) for i in inner)]


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder: str) -> None:
    found = files(folder)
    assert found
    for path in found:
        wrong = (imported(path) & FIRST_PARTY) - ALLOWED[folder]
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_no_modules_import_each_other() -> None:
    """Not even lazily: of two that need each other, neither can be read alone."""
    paths = [path for folder in FIRST_PARTY for path in sorted((ROOT / folder).rglob("*.py"))]
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
                found.add(node.module or "")
        graph[name] = found & modules.keys() - {name}
    assert len(graph) > 100
    # Raises CycleError, which names the modules.
    graphlib.TopologicalSorter(graph).prepare()


def test_serving_and_models_do_not_need_torch_to_be_imported() -> None:
    heavy = {"torch", "mlflow", "prefect", "distributed"}
    for path in files("deployments/serving"):
        assert not imported(path) & heavy, path
