"""Certificates for a cluster that has no authority of its own: for local use and for trying things.

In production let cert-manager, or whatever issues your certificates, make and renew them.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from triptych.errors import ConfigError

_SKEW = datetime.timedelta(minutes=5)  # clocks differ


def write_certificates(folder: Path, *, server_name: str, days: int) -> list[Path]:
    """ca.crt, tls.crt and tls.key, named as in Kubernetes' secrets of type kubernetes.io/tls.

    The authority's key is thrown away: it can sign for nobody else, and renewing means new files
    for everybody. Raises ConfigError when one of them exists already, or cannot be written.
    """
    files = [folder / name for name in ("ca.crt", "tls.crt", "tls.key")]
    for file in files:
        if file.exists():
            raise ConfigError(f"{file}: exists; remove it, or choose another folder")
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name(f"{server_name} cluster authority")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    leaf = (
        _builder(_name(server_name), ca_name, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in zip(
            files, (ca.public_bytes(pem), leaf.public_bytes(pem), secret), strict=True
        ):
            _write(file, content)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write certificates: {error}") from error
    return files


def _write(file: Path, content: bytes) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )
