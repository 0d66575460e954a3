"""Where version folders are read from, and how one that is proven is put in place.

What a version folder is, and how it is proven, is `models.version`; nothing is written to its final
place before all of it is.
"""

import fcntl
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deployments.serving.protocol import ProtocolError
from models.digests import IntegrityError
from models.files import sync_folder
from models.version import Reader

LINE, NUMBER, DIGEST = r"^[a-z][a-z0-9-]{1,40}$", r"^[1-9][0-9]{0,8}$", r"^[0-9a-f]{64}$"
_MODELS = "models"
"""The folder of a server's repository that holds lines, and nothing else: as Triton wants it."""
TRITON_FILE = "config.pbtxt"
"""Beside the versions of a line: how Triton serves the one in production."""
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_log = logging.getLogger("modelmint.serving")


def line_folder(root: Path, line: str) -> Path:
    """Where a repository holds the versions of a line, and what Triton reads of it."""
    return root / _MODELS / line


def version_folder(root: Path, line: str, number: str) -> Path:
    """Where it holds one of them."""
    return line_folder(root, line) / number


def matches(pattern: str, text: object) -> bool:
    """Whether `text` is a string and all of it has the pattern's form."""
    # `$` alone would let a final line break through.
    return isinstance(text, str) and bool(re.match(pattern, text)) and not text.endswith("\n")


def local(folder: Path) -> Reader:
    """Reads files of a folder on this machine."""

    def read(name: str, limit: int) -> bytes:
        try:
            with (folder / name).open("rb") as stream:
                content = stream.read(limit + 1)
        except OSError as error:
            raise IntegrityError(f"{name} cannot be read: {error.strerror}") from None
        return _within(name, content, limit)

    return read


def stored(source: str) -> Reader:
    """Reads objects below an `s3://` address under `versions/` of the project's bucket.

    The endpoint and the credentials come from boto3's standard environment. Raises ProtocolError:
    400 for any other address, 502 when the store does not answer.
    """
    bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
    if not matches(rf"^s3://{re.escape(bucket)}/versions(/{_SEGMENT}){{1,8}}/?$", source):
        raise ProtocolError(400, f"source must be below s3://{bucket}/versions/", "bad_source")
    prefix = source.removeprefix(f"s3://{bucket}/").rstrip("/")

    def read(name: str, limit: int) -> bytes:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        patience = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3})
        try:
            answer = boto3.client("s3", config=patience).get_object(
                Bucket=bucket, Key=f"{prefix}/{name}"
            )
            content = answer["Body"].read(limit + 1)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
                raise IntegrityError(f"{name} is not at the source") from None
            _log.warning("%s/%s: %s", prefix, name, error)
            raise ProtocolError(502, "the store refused to answer", "store_unavailable") from None
        except (BotoCoreError, OSError) as error:
            _log.warning("%s/%s: %s", prefix, name, error)
            raise ProtocolError(502, "the store does not answer", "store_unavailable") from None
        return _within(name, content, limit)

    return read


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put verified files in place whole or not at all; what was there before is replaced."""
    incoming = folder.parent / f".incoming-{folder.name}"
    damaged = folder.parent / f".damaged-{folder.name}"
    for leftover in (incoming, damaged):
        shutil.rmtree(leftover, ignore_errors=True)
    incoming.mkdir(parents=True)
    try:
        for name, content in files.items():
            with (incoming / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
    except OSError:  # a full disk needs the room
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    sync_folder(incoming)
    if folder.exists():
        folder.rename(damaged)
    incoming.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _within(name: str, content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise IntegrityError(f"{name} is larger than the {limit:,} bytes it may have")
    return content


def hold(root: Path) -> IO[str]:
    """Take the folder for one server until the file is closed; raises OSError when it is taken."""
    (root / _MODELS).mkdir(parents=True, exist_ok=True)
    # Two servers would overwrite each other's state; the lock goes with the process.
    lock = (root / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    for leftover in [*root.glob(f"{_MODELS}/*/.incoming-*"), *root.glob(f"{_MODELS}/*/.damaged-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    return lock


def adopt(root: Path, lines: Iterable[str]) -> None:
    """Put the versions of those lines where they are read now.

    Earlier servers kept the folder of a line in `root` itself. What is in the new place already is
    not replaced. For who holds the folder, before anything is opened; raises OSError.
    """
    for line in lines:
        before, now = root / line, line_folder(root, line)
        if before.is_symlink() or not before.is_dir():
            continue
        for path in list(before.iterdir()):
            ours = matches(NUMBER, path.name) or path.name == TRITON_FILE
            if ours and not (now / path.name).exists():
                now.mkdir(parents=True, exist_ok=True)
                path.rename(now / path.name)
                sync_folder(now)
        with suppress(OSError):  # something else is in it
            before.rmdir()


@contextmanager
def exclusive(lock: threading.Lock, path: Path) -> Iterator[None]:
    """Only this thread of this process, among all that name the same lock and the same file."""
    with lock, path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes whenever the file is replaced; zeros while there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
