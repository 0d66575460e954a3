"""Files of a raw object: the object itself, or the members of a tar shard."""

import io
import tarfile
from collections.abc import Iterator

from models.data import RefusedObject


def members(name: str, payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; raises RefusedObject where a shard is not whole."""
    if not name.endswith(".tar"):
        yield name, payload
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    stream = archive.extractfile(member)
                    yield member.name, stream.read() if stream else b""
            end = payload[archive.offset : archive.offset + tarfile.BLOCKSIZE]
            # A cut or damaged header after the first member ends the iteration without an error.
            if end != tarfile.NUL * tarfile.BLOCKSIZE:
                raise RefusedObject("not a whole tar archive: it has no end mark")
    except tarfile.TarError as error:
        raise RefusedObject(f"not a whole tar archive: {error}") from None
