"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Cluster config (YAML); default: all defaults."),
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, e.g. engine.chunk_tokens=64. Repeatable."),
]
Url: TypeAlias = Annotated[str, typer.Option(help="Where the router listens.")]
ApiKey: TypeAlias = Annotated[
    str | None, typer.Option("--api-key", help="One of the router's api_keys.")
]
