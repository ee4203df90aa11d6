"""`triptych config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.launch.commands.options import ConfigFile, Overrides

app = typer.Typer(no_args_is_help=True, help="The cluster config.")


@app.command()
def show(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the effective config: the file, the overrides and every default."""
    from triptych.config import dump_config, load_config

    typer.echo(dump_config(load_config(config_file, overrides or ())), nl=False)


@app.command()
def check(
    config_file: Annotated[Path, typer.Argument(metavar="FILE")], overrides: Overrides = None
) -> None:
    """Say what is wrong with a config, or what it starts."""
    from triptych.config import load_config

    config = load_config(config_file, overrides or ())
    pools = ", ".join(f"{pool.replicas} {pool.role} ({pool.name})" for pool in config.pools)
    typer.echo(f"{config_file}: ok: {config.model}, {pools}")
