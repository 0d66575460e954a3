"""An OpenSSF Model Signing signature over an exported folder, for tools that know only that.

Source: OpenSSF Model Signing v1.0, the `model-signing` library (extra `openssf`). It needs an ECDSA
key, so this place keeps a second one for it; its bytes differ each time, and no digest covers them.
"""

from pathlib import Path

from models.files import write
from models.trust import trust

PRIVATE, PUBLIC = "openssf.pem", "openssf.pub"
SIGNATURE_FILE = "model.sig"


class MissingLibraryError(ImportError):
    """The optional library is not installed."""


def sign(folder: Path) -> None:
    """Write `model.sig` and the public key `openssf.pub` into the folder; covers all its files.

    To check it: `model_signing verify key --signature FOLDER/model.sig --public_key
    FOLDER/openssf.pub FOLDER`. Raises MissingLibraryError.
    """
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise MissingLibraryError(
            f"{error.name} is not installed: pip install 'modelmint[openssf]'"
        ) from None
    private, public = _keys()
    (folder / PUBLIC).write_bytes(public.read_bytes())
    signature = folder / SIGNATURE_FILE
    ignoring = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=private)
    config.set_hashing_config(ignoring).sign(folder, signature)


def _keys() -> tuple[Path, Path]:
    """The private and the public key file, made on first use."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = trust().folder / PRIVATE, trust().folder / PUBLIC
    if not private.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        shown = key.public_key().public_bytes(
            form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
        )
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(public, shown, 0o644)
        write(private, secret)
    return private, public
