"""A certificate of this machine's own, for the https port of a laptop: of `localhost`, loopback."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deployments.local.ports import HOST
from models.files import write

DAYS, RENEWED = 365, 30
"""How long one is valid, and how many days before its end another is made."""


class Pair(NamedTuple):
    """PEM files of a certificate and its private key."""

    certificate: Path
    private_key: Path


def local_certificate(folder: Path) -> Pair:
    """The pair in a folder, made when there is none that lasts; clients are told to trust it.

    Raises ValueError when what is there is no certificate.
    """
    pair = Pair(folder / "certificate.pem", folder / "private-key.pem")
    if all(file.exists() for file in pair):
        found = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        if found.not_valid_after_utc - datetime.now(UTC) > timedelta(days=RENEWED):
            return pair
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modelmint on this machine")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # It vouches for itself alone: whoever trusts it trusts no other certificate by it.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(pair.private_key, secret)
    write(pair.certificate, made.public_bytes(pem))
    return pair
