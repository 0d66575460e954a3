"""The stage key: a digest of everything the output of a stage is a function of.

    key = digest(stage, arguments, first-party code, locked distributions, Python, libc, machine)

*Code* is the stage's module and every first-party module it imports at run time, transitively, plus
the modules of the classes found in its arguments, as syntax trees without comments and docstrings:
to edit a helper invalidates, to reword a comment does not. A *function* given as an argument (a
line's `clean`) counts with the names of its file it uses, so that a line's other settings do not
invalidate its cleaning. *Distributions* are those the code imports and what they require.
"""

import ast
import datetime
import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel

from models import catalog
from models.digests import Digest, bytes_digest, json_digest
from models.open import name_of, resolve
from models.version import StageIdentity
from tasks.refs import Ref

# Code another process runs is named by text of this form (see tasks.isolated); it counts as import.
TARGET = re.compile(r"^(flows|tasks|models)(\.[a-z_]+)+:[A-Za-z_]+$")
TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
FIRST_PARTY = {"flows", "tasks", "models", "modelmint_lines"}
# These move content whose digest is checked on arrival, so they cannot change a result, and what
# they import (Prefect, Dask, boto3, MLflow) stays out of the key.
TRANSPORT = {
    "tasks.store", "tasks.stage", "tasks.results", "tasks.identity", "tasks.cluster",
    "tasks.progress", "tasks.tracking", "models.catalog",
}  # fmt: skip
# What gives content its name: another rule is another content, wherever it is used.
RULES = ("models.digests", "models.table_digest")


def stage_key(stage: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Digest:
    """The key of one call of a stage; raises TypeError for an argument that has no identity."""
    return json_digest(stage_identity(stage, function, arguments))


def stage_identity(
    stage: str, function: Callable[..., Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """What the key is the digest of, readable: kept with a version so that replays can compare."""
    modules = {function.__module__, *RULES}
    functions: list[Callable[..., Any]] = []
    values = {name: _identity(value, modules, functions) for name, value in arguments.items()}
    code: dict[str, str] = {}
    imported: set[str] = set()
    for callee in functions:
        symbols = _symbols(callee)
        code[name_of(callee)] = symbols[0]
        modules |= symbols[1]
        imported |= symbols[2]
    for name in closure(modules):
        digest, _, third_party = _module(name)
        code[name] = digest
        imported |= third_party
    identity = StageIdentity(
        stage=stage,
        arguments=values,
        code=dict(sorted(code.items())),
        distributions=locked(frozenset(imported)),
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()),
        machine=platform.machine(),
    )
    return identity.model_dump(mode="json")


class OtherCodeError(RuntimeError):
    """This process runs other code than a stage key says."""


def check_here(identity: Mapping[str, Any]) -> None:
    """Raise OtherCodeError unless this process has the code and the libraries of the identity.

    What a process has loaded is what it read first: a worker that outlives an edit keeps the old
    code, and would store its results under the new key.
    """
    catalog.modules()
    other = [name for name, digest in identity["code"].items() if code_here(name) != digest]
    for name, version in identity["distributions"].items():
        found = _distribution(name)
        if found is None or found[0] != version:
            other.append(f"{name} {found[0] if found else 'absent'} instead of {version}")
    if identity["python"] != platform.python_version():
        other.append(f"Python {platform.python_version()} instead of {identity['python']}")
    if other:
        raise OtherCodeError(
            f"worker {platform.node()} runs other code than stage {identity['stage']} is keyed by"
            f" ({', '.join(other[:4])}; {len(other)} in all): restart it from this checkout"
        )


def code_here(name: str) -> Digest | None:
    """The digest of a module, or of a function with what it uses, as this process has it."""
    try:
        return _symbols(resolve(name))[0] if ":" in name else _module(name)[0]
    except (TypeError, ValueError, ImportError, OSError):
        return None


def _identity(value: Any, modules: set[str], functions: list[Callable[..., Any]]) -> Any:
    if isinstance(value, Ref):
        return {"ref": type(value).__name__, "digest": value.digest}
    if isinstance(value, BaseModel):
        modules.add(type(value).__module__)
        fields = {
            n: _identity(getattr(value, n), modules, functions) for n in type(value).model_fields
        }
        return {"type": name_of(type(value)), **fields}
    if isinstance(value, FunctionType):
        functions.append(value)
        return {"function": name_of(value)}
    if isinstance(value, dict):
        return {str(k): _identity(v, modules, functions) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(v, modules, functions) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"a stage cannot take a {type(value).__name__}: it has no identity")


def closure(modules: Iterable[str]) -> list[str]:
    """The modules and all first-party modules they import, transitively, sorted."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in TRANSPORT:
            found.add(name)
            waiting += _module(name)[1]
    return sorted(found)


@cache
def locked(imported: frozenset[str]) -> dict[str, str]:
    """Name and version of the distributions that give the imports, and of all they require."""
    waiting = [name for module in imported for name in _providers(module)]
    found: dict[str, str] = {}
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found and (distribution := _distribution(name)) is not None:
            found[name] = distribution[0]
            waiting += distribution[1]
    return dict(sorted(found.items()))


@cache
def _distribution(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Version and unconditional requirements of an installed distribution."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    needed = [r for r in found.requires or [] if "extra ==" not in r]
    names = tuple(re.split(r"[\s;<>=!~\[(]", r, maxsplit=1)[0] for r in needed)
    return found.version, names


def _providers(module: str) -> list[str]:
    # The map of all modules takes half a second to build, and most distributions need none.
    if _distribution(canonicalize_name(module)) is not None:
        return [module]
    return list(_by_module().get(module, ()))


@cache
def _by_module() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@cache
def _module(name: str) -> tuple[Digest, frozenset[str], frozenset[str]]:
    """Digest, first-party imports and third-party imports of a module."""
    tree = _tree(name)
    first, third = _imports(_executed(tree), name)
    return _tree_digest(tree.body), first, third


def _executed(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but what is for type checkers only: it never runs, so no result follows from it."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _tree(name: str) -> ast.Module:
    known = sys.modules.get(name)
    spec = known.__spec__ if known is not None else importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise TypeError(f"the source of {name} cannot be found, so it has no identity")
    return ast.parse(Path(spec.origin).read_bytes())


def _imports(nodes: Iterable[ast.AST], module: str) -> tuple[frozenset[str], frozenset[str]]:
    first: set[str] = set()
    third: set[str] = set()
    ours = FIRST_PARTY | {module.partition(".")[0]}
    for name in _imported_names(nodes, module):
        root = name.partition(".")[0]
        if root in ours:
            first.add(name)
        elif root not in sys.stdlib_module_names:
            third.add(root)
    return frozenset(first), frozenset(third)


def _imported_names(nodes: Iterable[ast.AST], module: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if TARGET.match(node.value):
                yield node.value.partition(":")[0]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *([base] if base else [])])
            yield base
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                ours = FIRST_PARTY | {module.partition(".")[0]}
                if base.partition(".")[0] in ours and _is_module(submodule):
                    yield submodule


@cache
def _is_module(name: str) -> bool:
    if name in sys.modules:
        return True
    # To look into a package imports it; to look into a module would run it, and torch with it.
    parent = name.rpartition(".")[0]
    spec = importlib.util.find_spec(parent)
    inside_package = spec is not None and spec.submodule_search_locations is not None
    return inside_package and importlib.util.find_spec(name) is not None


def _symbols(function: Callable[..., Any]) -> tuple[Digest, set[str], set[str]]:
    """A function with the top-level names of its file it uses: digest and imported modules."""
    module = function.__module__
    defined: dict[str, list[ast.stmt]] = {}
    for statement in _tree(module).body:
        for name in _bound(statement):
            defined.setdefault(name, []).append(statement)
    used: dict[int, ast.stmt] = {}
    waiting = [function.__qualname__]
    while waiting:
        for statement in defined.get(waiting.pop(), ()):
            if id(statement) not in used:
                used[id(statement)] = statement
                waiting += [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)]
    body = sorted(used.values(), key=lambda statement: (statement.lineno, statement.col_offset))
    first, third = _imports((node for s in body for node in ast.walk(s)), module)
    code = [s for s in body if not isinstance(s, ast.Import | ast.ImportFrom)]
    return _tree_digest(code), set(first), set(third)


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(a.asname or a.name).partition(".")[0] for a in statement.names]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return [
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name)
            and (isinstance(node.ctx, ast.Store) or _is_target(node, statement))
        ]
    # Anything else may bind or change whatever it mentions: `TABLE.update(...)`, `if`, `try`.
    inner = [s for s in ast.iter_child_nodes(statement) if isinstance(s, ast.stmt)]
    mentioned = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return [*mentioned, *(name for s in inner for name in _bound(s))]


def _is_target(node: ast.Name, statement: ast.Assign | ast.AnnAssign) -> bool:
    """Whether the name is inside a target, as TABLE in `TABLE["x"] = 3`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return any(node in ast.walk(target) for target in targets)


def _tree_digest(body: list[ast.stmt]) -> Digest:
    tree = _WithoutText().visit(ast.Module(body=list(body), type_ignores=[]))
    return bytes_digest(ast.dump(tree).encode())


class _WithoutText(ast.NodeTransformer):
    """Drops docstrings, which change no behaviour."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
