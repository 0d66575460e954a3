"""Finding lines: the ones in `models/lines/`, in the folders of MODELMINT_LINES, and entry points.

MODELMINT_LINES lists folders, separated like PATH; every `*.py` in them is a line file. An
installed distribution adds lines by entry points of the group `modelmint.lines`, each naming a
module. A line file binds its line to the name `line`.
"""

import importlib
import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from models import lines as shipped
from models.spec import Line

SETTING = "MODELMINT_LINES"
PACKAGE = "modelmint_lines"


class LineError(ValueError):
    """A line file, or a folder of them, is not as it must be."""


class UnknownLineError(LookupError):
    """No line of that name; the message lists those there are."""


def lines() -> dict[str, Line]:
    """All lines by name; raises LineError when two share one or a line file has none."""
    found: dict[str, Line] = {}
    for module in modules():
        line = getattr(module, "line", None)
        if not isinstance(line, Line):
            raise LineError(f"{module.__file__}: binds no Line to the name `line`")
        if line.name in found:
            raise LineError(f"{module.__file__}: a line {line.name!r} is defined elsewhere too")
        found[line.name] = line
    return dict(sorted(found.items()))


def find(name: str) -> Line:
    """The line called `name`; raises UnknownLineError."""
    found = lines()
    if name not in found:
        raise UnknownLineError(f"no line is called {name!r}; there are {', '.join(found)}")
    return found[name]


def modules() -> list[ModuleType]:
    """The modules of all line files, imported."""
    names = [
        f"{shipped.__name__}.{path.stem}"
        for folder in shipped.__path__
        for path in sorted(Path(folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    names += [entry.value for entry in entry_points(group="modelmint.lines")]
    found = [importlib.import_module(name) for name in names]
    for folder in filter(None, os.environ.get(SETTING, "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise LineError(f"{SETTING}: there is no folder {folder}")
        found += [_from_file(path) for path in sorted(Path(folder).glob("*.py"))]
    return found


def _from_file(path: Path) -> ModuleType:
    """Import a file as `modelmint_lines.<stem>`, so that its functions have a name everywhere."""
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = []
    name = f"{PACKAGE}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise LineError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
