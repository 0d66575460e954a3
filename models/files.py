"""Files that are whole whenever they have their name, and private from their first byte on."""

import os
from pathlib import Path


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace one file: after a power cut it holds the old content or the new.

    `mode` less the umask; by default only its owner may read it. Raises OSError.
    """
    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    # What a process of this number left when it was killed.
    incoming.unlink(missing_ok=True)
    handle = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    incoming.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within the folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
