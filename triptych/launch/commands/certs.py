"""`triptych certs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def certs(
    folder: Annotated[Path, typer.Argument(help="Gets ca.crt, tls.crt and tls.key.")],
    server_name: Annotated[
        str, typer.Option(help="The name in the certificate: tls.server_name of the config.")
    ] = "triptych",
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make certificates for the calls between routers and workers, for local use."""
    from triptych.errors import ConfigError
    from triptych.launch.console import open_console, say

    try:
        from triptych.certificates import write_certificates
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: `pip install 'triptych-runtime[certs]'`, or make the "
            "files with openssl"
        ) from error
    for file in write_certificates(folder, server_name=server_name, days=days):
        say(open_console(), str(file))
