"""The keys of this place: what it signs with, and whose signatures it counts.

The private key is made on first use, readable by its owner only. To rotate is to make another; the
old private key is destroyed, its public half goes on being trusted until it is revoked or expires.
"""

import datetime
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import write
from models.trust import TRUSTED, PublicKey, Trust, TrustError, trust

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

PRIVATE = "signing.pem"


def signer() -> "CryptoSigner":
    """What this place signs with; raises TrustError when the key is exposed, revoked or expired."""
    here = trust()
    path = here.folder / PRIVATE
    if not path.exists():
        _create(here)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TrustError(
            f"{path} can be read by others (mode {mode:o}): run `chmod 600` on it, and if somebody"
            " may have read it `modelmint trust rotate`"
        )
    found = _load(path)
    keyid = str(found.public_key.keyid)
    if not here.keys([keyid]):
        raise TrustError(
            f"{path} is key {keyid[:12]}, which was revoked or has expired here: run `modelmint"
            " trust rotate`"
        )
    return found


def keyid() -> str:
    """The id of what this place signs with; empty while it has no key. Raises TrustError."""
    path = trust().folder / PRIVATE
    return str(_load(path).public_key.keyid) if path.exists() else ""


def rotate(expires: datetime.date | None = None) -> PublicKey:
    """Sign with a new key from now on; the old private key is gone, its signatures still count."""
    here = trust()
    private, key = _pair(expires)
    add(key)
    write(here.folder / PRIVATE, private)
    return key


def add(key: PublicKey) -> Path:
    """Trust a key; returns its file. Replaces what was said about the same key before."""
    folder = trust().folder / TRUSTED
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key.keyid}.json"
    write(path, key.model_dump_json(indent=1).encode(), 0o644)
    return path


def revoke(prefix: str) -> PublicKey:
    """No longer trust the one key whose id begins so; raises TrustError when it is not just one."""
    found = [key for key in trust().all() if key.keyid.startswith(prefix)]
    if len(found) != 1:
        raise TrustError(f"{len(found)} trusted keys begin with {prefix!r}; see `modelmint trust`")
    (trust().folder / TRUSTED / f"{found[0].keyid}.json").unlink()
    return found[0]


def _create(here: Trust) -> None:
    """The first key; of two processes that make one at once, one key is linked in place."""
    here.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, key = _pair(None)
    # Trusted before it can sign.
    trusted = add(key)
    with tempfile.TemporaryDirectory(dir=here.folder) as folder:
        path = Path(folder) / PRIVATE
        write(path, private)
        try:
            (here.folder / PRIVATE).hardlink_to(path)
        except FileExistsError:
            trusted.unlink()


def _pair(expires: datetime.date | None) -> tuple[bytes, PublicKey]:
    """A new private key as PEM, and its public half."""
    from securesystemslib.signer import CryptoSigner

    made = CryptoSigner.generate_ed25519()
    key = PublicKey(
        keyid=made.public_key.keyid,
        public=made.public_key.keyval["public"],
        owner="this place",
        expires=expires,
    )
    return made.private_bytes, key


def _load(path: Path) -> "CryptoSigner":
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        private = load_pem_private_key(path.read_bytes(), None)
        return CryptoSigner(private)
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"{path} is no ed25519 key: restore it, or remove it ({error})") from None
