"""A certificate authority of this test, and a certificate it made for every side of Dask."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def write_certificates(folder: Path, *addresses: str) -> dict[str, Path]:
    """PEM files `ca`, `cert` and `key` below the folder, valid for these addresses for a day."""
    folder.mkdir(parents=True)
    now = datetime.datetime.now(datetime.UTC)
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name("modelmint test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    root = certificate("modelmint test authority", authority).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    )
    leaf = certificate("modelmint", own).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    content = {
        "ca": root.sign(authority, hashes.SHA256()).public_bytes(pem),
        "cert": leaf.sign(authority, hashes.SHA256()).public_bytes(pem),
        "key": own.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    files = {name: folder / f"{name}.pem" for name in content}
    for name, path in files.items():
        path.touch(mode=0o600)
        path.write_bytes(content[name])
    return files


def dask_settings(files: dict[str, Path]) -> dict[str, str]:
    """The variables with which every side of Dask shows them, and refuses what is not encrypted."""
    tls = "DASK_DISTRIBUTED__COMM__TLS"
    settings = {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        f"{tls}__CA_FILE": str(files["ca"]),
    }
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"{tls}__{role}__CERT"] = str(files["cert"])
        settings[f"{tls}__{role}__KEY"] = str(files["key"])
    return settings
