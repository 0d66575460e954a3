"""The versions whose folders are in place, for a load that names none."""

import logging
from pathlib import Path

from deployments.serving.folder import LINE, NUMBER, line_folder, local, matches, version_folder
from deployments.serving.line import Line
from deployments.serving.opening import untrusting
from deployments.serving.protocol import ProtocolError
from models.digests import IntegrityError
from models.trust import Trust, TrustError
from models.version import read_verified

_log = logging.getLogger("modelmint.serving")


def meant(root: Path, trust: Trust, name: str, line: Line) -> tuple[str, str]:
    """Number and digest of the version of a line that a load without them means.

    The one in production where it is not in memory, else the newest whose folder verifies, which
    may be in memory already. Raises ProtocolError: 400 for a wrong name, 404 when there is no
    folder, 422 when none verifies, 503 when a trusted key cannot be read.
    """
    if not matches(LINE, name):
        raise ProtocolError(400, f"name must have the form {LINE}", "bad_name")
    if line.default is not None and line.default not in line.versions:
        return line.default, line.digests[line.default]
    numbers = [
        path.name for path in line_folder(root, name).glob("*") if matches(NUMBER, path.name)
    ]
    if not numbers:
        raise ProtocolError(
            404, f"no version of {name} is here: give version, digest and source", "no_folder"
        )
    reasons = []
    for number in sorted(numbers, key=int, reverse=True):
        if number in line.versions:
            return number, line.versions[number].digest
        try:
            known = line.digests.get(number)
            found = read_verified(local(version_folder(root, name, number)), trust, name, known)
        except IntegrityError as error:
            _log.warning("%s version %s is passed over: %s", name, number, error)
            reasons.append(f"version {number}: {error}")
        except TrustError as error:
            raise untrusting(error) from None
        else:
            return number, found.recipe.digest
    raise ProtocolError(
        422, f"no version of {name} here verifies; the newest, {reasons[0]}", "integrity"
    )
