"""A registered version to be asked here: proven once, then read and checked by any worker."""

from models import catalog
from models.digests import Digest, Manifest
from models.open import Frozen
from models.signature import SIGNATURE_FILE, Signature, network_file
from models.version import Verified
from tasks.folders import StoredFolder
from tasks.inference import Session, session
from tasks.promotion import promotions
from tasks.recorded import recorded_version


class NoChampionError(LookupError):
    """No version of the line serves."""


class Served(Frozen):
    """A version whose signature is proven, and the digests of its files."""

    line: str
    number: int
    digest: Digest
    manifest: Manifest

    def signature(self) -> Signature:
        """Its preprocessing and objective; raises IntegrityError when the file was altered."""
        catalog.modules()
        return Signature.model_validate_json(self._file(SIGNATURE_FILE))

    def session(self) -> Session:
        """Its network on one thread, as the model server runs it; raises IntegrityError."""
        return session(self._file(network_file(self.manifest.files)), portable=False)

    def _file(self, name: str) -> bytes:
        content = StoredFolder(self.line, self.digest).read(name, self.manifest.files[name].size)
        self.manifest.check(name, content)
        return content


def served(line: str, number: int | None = None) -> tuple[Served, Verified]:
    """The version of that number, by default the champion, its signature and digests proven.

    Raises IntegrityError when it does not verify, and UnknownVersionError, UnknownLineError or
    NoChampionError where there is none.
    """
    if number is None:
        champion = promotions(line).champion
        if champion is None:
            catalog.find(line)
            raise NoChampionError(f"{line} has no champion: produce one, or name a version")
        number = champion.number
    found = recorded_version(line, number)
    return Served(
        line=line, number=number, digest=found.recipe.digest, manifest=found.manifest
    ), found
