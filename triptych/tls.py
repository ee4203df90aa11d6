"""A process's certificates, as its config says."""

from __future__ import annotations

from transport.channel import use_tls
from triptych.config import ClusterConfig
from triptych.errors import ConfigError


def setup_tls(config: ClusterConfig) -> None:
    """Before the first call or server of the process. Raises ConfigError naming the file."""
    try:
        use_tls(None if config.tls is None else config.tls.files)
    except OSError as error:
        raise ConfigError(
            f"tls: cannot read {error.filename}: {error.strerror}; `triptych certs DIR` makes "
            "certificates for local use"
        ) from error
