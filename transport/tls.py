"""Mutual TLS of the control plane: both ends of a call show a certificate of the cluster's own
authority.

Every process of a cluster has the same name in its certificate. Addresses are not compared: pods
get new ones all the time, and whoever has a certificate of this authority belongs to the cluster.
Files are read again as they change, so a certificate may be renewed under a running process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, as in a Kubernetes secret of type kubernetes.io/tls with a `ca.crt`."""

    cert: Path
    key: Path
    ca: Path  # who signed our certificate, and those of all the others
    server_name: str  # among the names in every certificate

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key, authority. Raises OSError."""
        return self.cert.read_bytes(), self.key.read_bytes(), self.ca.read_bytes()


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """As the files are now: a new channel for a new certificate. Raises OSError."""
    cert, key, ca = files.read()
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Clients must show a certificate. Each new connection sees the files as they are by then.

    Raises OSError; later, while files cannot be read, what was read last stays in force.
    """
    current = files.read()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current
        try:
            found = files.read()
        except OSError:
            return None
        if found == current:
            return None
        current = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(current),
        changed,  # type: ignore[arg-type]  # None, "nothing changed", is missing in the stubs
        require_client_authentication=True,
    )


def _configuration(pems: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    cert, key, ca = pems
    return grpc.ssl_server_certificate_configuration([(key, cert)], ca)
