"""The code a version was made with, kept whole, so that a later release can run it again.

The recipe names code by the digests of syntax trees; this is its text, comments included: a tar of
every first-party Python file and of the line files named by MODELMINT_LINES.
"""

import gzip
import importlib.util
import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from models.catalog import SETTING
from models.digests import IntegrityError

PACKAGES = ("deployments", "flows", "models", "tasks")
COMMAND = "modelmint"
FILE = "source.tar.gz"
LINES = "lines"
LARGEST = 64 << 20
# Seconds git may take: the commit is for people, and no digest covers it.
PATIENCE = 10.0


@cache
def archive() -> bytes:
    """A gzipped tar of the code that is running, the same bytes for the same text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(_files()):
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def extract(content: bytes, folder: Path) -> None:
    """Write an archive's files below the folder; raises IntegrityError for anything else in it."""
    try:
        # Unpacked member by member, so that a small archive cannot fill the memory.
        with tarfile.open(fileobj=io.BytesIO(content), mode="r|gz") as tar:
            total = 0
            for member in tar:
                total += member.size
                parts = PurePosixPath(member.name).parts
                if not member.isfile() or ".." in parts or member.name.startswith("/"):
                    raise IntegrityError(f"{FILE}: {member.name!r} is no file of a checkout")
                if total > LARGEST:
                    raise IntegrityError(f"{FILE}: larger than {LARGEST:,} bytes unpacked")
                stream = tar.extractfile(member)
                assert stream is not None
                path = folder.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as goal:
                    goal.write(stream.read())
    except FileExistsError:
        raise IntegrityError(f"{FILE}: {member.name!r} stands in it twice") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise IntegrityError(f"{FILE} is no archive of code: {error}") from None


def commit() -> str:
    """The git commit of the checkout, with `-dirty` where it was changed.

    Empty outside of a checkout, and where git takes too long, as on a slow disk.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=_root(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _files() -> Iterator[tuple[str, Path]]:
    root = _root()
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                yield path.relative_to(root).as_posix(), path
    spec = importlib.util.find_spec(COMMAND)
    if spec is not None and spec.origin is not None:
        yield f"{COMMAND}.py", Path(spec.origin)
    for folder in filter(None, os.environ.get(SETTING, "").split(os.pathsep)):
        for path in Path(folder).glob("*.py"):
            yield f"{LINES}/{path.name}", path


def _root() -> Path:
    import models

    return Path(next(iter(models.__path__))).parent
