"""`triptych models`: checkpoints that we know by name, and those made from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from triptych.launch.commands.upcycle import upcycle

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.config import ClusterConfig

app = typer.Typer(no_args_is_help=True, help="Checkpoints: pull, list, make.")
app.command()(upcycle)


@app.command("list")
def list_models() -> None:
    """Show the known models and where they are."""
    from triptych.hub import known_models
    from triptych.launch.console import Row, open_console, show_rows

    where = [(model, model.cached or "not downloaded") for model in known_models()]
    rows = [Row(model.name, model.description, str(place)) for model, place in where]
    show_rows(open_console(), rows)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="See `triptych models list`.")]) -> None:
    """Download a known model into the cache."""
    from triptych.launch.console import open_console

    pull_model(name, open_console())


def ensure_models(config: ClusterConfig, console: Console) -> None:
    """`ensure_model` for the target's checkpoint and those that drafters load."""
    for name in config.models:
        ensure_model(name, console)


def ensure_model(name: str, console: Console) -> None:
    """Downloads what is not in the cache yet: a known model, or one that a source names.

    Raises ModelError for no model.
    """
    from triptych.hub import known_models, resolve_model
    from triptych.launch.commands.fetch import fetch_to
    from triptych.weights.source import is_source

    if is_source(name):
        fetch_to(name, None, console)
    elif any(model.name == name and model.cached is None for model in known_models()):
        pull_model(name, console)
    resolve_model(name)


def pull_model(name: str, console: Console) -> None:
    """Says where it is. Raises ModelError."""
    from triptych import hub
    from triptych.launch.console import say
    from triptych.launch.progress import show_bytes

    with show_bytes(console, f"pulling {name}") as progress:
        path = hub.pull_model(name, progress)
    if not console.is_terminal:
        say(console, f"{name}: {path}")
