"""`triptych models`: checkpoints that we know by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Checkpoints that are known by name.")


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


def ensure_model(name: str, console: Console) -> None:
    """Downloads a known model that is not in the cache yet. Raises ModelError for no model."""
    from triptych.hub import known_models, resolve_model

    if any(model.name == name and model.cached is None for model in known_models()):
        pull_model(name, console)
    resolve_model(name)


def pull_model(name: str, console: Console) -> None:
    """With a progress bar on a terminal, a line per quarter elsewhere. Raises ModelError."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from triptych import hub
    from triptych.launch.console import say

    if not console.is_terminal:
        say(console, f"{name}: {hub.pull_model(name, _Quarters(name, console))}")
        return
    columns = (TextColumn("pulling {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=None)
        hub.pull_model(name, lambda done, total: bar.update(task, completed=done, total=total))


class _Quarters:
    """Progress for a log file."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        from triptych.launch.console import say

        if done >= self._next * total:
            self._next = done // (total / 4) / 4 + 0.25
            say(self._console, f"pulling {self._name}: {done >> 20} of {total >> 20} MiB")
