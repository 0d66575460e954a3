"""A version opened: proven in its folder, fetched where it is absent or damaged, then warmed up."""

import logging
from pathlib import Path

from deployments.serving.disk import written
from deployments.serving.folder import local, version_folder, write_folder
from deployments.serving.protocol import ProtocolError
from deployments.serving.session import Served, open_version
from models.digests import IntegrityError
from models.trust import Trust, TrustError
from models.version import Reader, read_verified

_log = logging.getLogger("modelmint.serving")


def open_proven(
    root: Path, trust: Trust, name: str, number: str, digest: str, source: Reader | None = None
) -> Served:
    """The version with this digest, from its folder below `root` or else from the source.

    Raises ProtocolError: 404 when it is in neither, 422 when it does not verify or fit, 502 when
    the store does not answer, 503 when a trusted key cannot be read or the folder not written.
    """
    folder = version_folder(root, name, number)
    try:
        try:
            files = read_verified(local(folder), trust, name, digest).files
        except IntegrityError:
            if source is None and not folder.exists():
                raise ProtocolError(
                    404, f"{name} version {number} is not here: give its source", "no_folder"
                ) from None
            if source is None:
                raise
            # Absent or damaged here: proven in memory first, then put in place whole.
            files = read_verified(source, trust, name, digest).files
            with written(folder):
                write_folder(folder, files)
    except IntegrityError as error:
        raise ProtocolError(422, f"{name} version {number}: {error}", "integrity") from None
    except TrustError as error:
        raise untrusting(error) from None
    return open_version(name, number, digest, files)


def untrusting(error: TrustError) -> ProtocolError:
    """What a caller is told of a trusted key that cannot be read; the log says which."""
    _log.error("%s", error)
    return ProtocolError(
        503, "a file among the trusted keys is no key: see the server's log", "trust"
    )
