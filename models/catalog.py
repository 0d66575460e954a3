"""Finding lines: the ones in `models/lines/`, in the folders of MODELMINT_LINES, and entry points.

MODELMINT_LINES lists folders, separated like PATH; every `*.py` in them is a line file. An
installed distribution adds lines by entry points of the group `modelmint.lines`, each naming a
module. A line file binds its line to the name `line`.
"""

import importlib
import importlib.util
import logging
import os
import sys
import traceback
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from models import lines as shipped
from models.spec import Line

SETTING = "MODELMINT_LINES"
PACKAGE = "modelmint_lines"
log = logging.getLogger("modelmint.lines")
_logged: set[str] = set()


class LineError(ValueError):
    """A line file, or a folder of them, is not as it must be."""


class UnknownLineError(LookupError):
    """No line of that name; the message lists those there are."""


def lines() -> dict[str, Line]:
    """All lines by name; raises LineError for the first that `sound` leaves out."""
    found, broken = sound()
    if broken:
        raise broken[0]
    return found


def sound() -> tuple[dict[str, Line], list[LineError]]:
    """The lines by name that can be used, and why the others cannot: their file raises an error,
    binds no line, or one of a name that is taken."""
    found: dict[str, list[Line]] = {}
    imported, broken = _imported()
    for module in imported:
        line = getattr(module, "line", None)
        if not isinstance(line, Line):
            broken.append(LineError(f"{module.__file__}: binds no Line to the name `line`"))
            continue
        if line.name in found:
            told = f"{module.__file__}: a line {line.name!r} is defined elsewhere too"
            broken.append(LineError(told))
        found.setdefault(line.name, []).append(line)
    # Of two nobody can say which is meant.
    return {name: found[name][0] for name in sorted(found) if len(found[name]) == 1}, broken


def find(name: str) -> Line:
    """The line called `name`, whatever is wrong with others; raises UnknownLineError, or LineError
    where it may be in a file that cannot be used."""
    found, broken = sound()
    if name not in found:
        said = f"no line is called {name!r}; there are {', '.join(found)}"
        if broken:
            raise LineError(f"{said}; not usable: {'; '.join(map(str, broken))}") from broken[0]
        raise UnknownLineError(said)
    return found[name]


def modules() -> list[ModuleType]:
    """The modules of all line files that can be imported, and so the classes lines are made of.

    Why another cannot is logged, once in a process.
    """
    found, broken = _imported()
    for error in broken:
        if str(error) not in _logged:
            _logged.add(str(error))
            log.error("%s", error)
    return found


def _imported() -> tuple[list[ModuleType], list[LineError]]:
    names = [
        f"{shipped.__name__}.{path.stem}"
        for folder in shipped.__path__
        for path in sorted(Path(folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    names += [entry.value for entry in entry_points(group="modelmint.lines")]
    loads = [(name, partial(importlib.import_module, name)) for name in names]
    broken = []
    for folder in map(Path, filter(None, os.environ.get(SETTING, "").split(os.pathsep))):
        if not folder.is_dir():
            broken.append(LineError(f"{SETTING}: there is no folder {folder}"))
        loads += [(str(path), partial(_from_file, path)) for path in sorted(folder.glob("*.py"))]
    found = []
    for name, load in loads:
        try:
            found.append(load())
        except LineError as error:
            broken.append(error)
        except (Exception, SystemExit) as error:  # whatever is in a line's file
            failure = LineError(f"{name}{_place(name, error)}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            broken.append(failure)
    return found, broken


def _place(file: str, error: BaseException) -> str:
    """Where in the file the error came up, as `:12`."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f":{frame.lineno}" for frame in frames if frame.filename == str(Path(file).resolve())]
    return lines[-1] if lines else ""


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
