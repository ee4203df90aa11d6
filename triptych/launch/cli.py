"""The `triptych` command. Heavy imports stay inside the commands: help is there at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from triptych.errors import TriptychError
from triptych.launch.commands import config, draft, models, plan
from triptych.launch.commands.calibrate import calibrate
from triptych.launch.commands.certs import certs
from triptych.launch.commands.chat import chat
from triptych.launch.commands.doctor import doctor
from triptych.launch.commands.fetch import fetch
from triptych.launch.commands.up import up

USER_ERROR = 2  # exit code, as for wrong options


class _Face(TyperGroup):
    """Errors that a user can meet are one red line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TriptychError as error:
            first, *rest = str(error).splitlines() or [type(error).__name__]
            typer.secho(f"error: {first}", fg=typer.colors.RED, err=True)
            for line in rest:  # the end of a log
                typer.echo(line, err=True)
            raise typer.Exit(USER_ERROR) from error


app = typer.Typer(
    name="triptych",
    cls=_Face,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they may hold a key or a prompt
    help="Serve a language model from pools of prefill and decode workers behind one router.",
)
app.command()(up)
app.command()(chat)
app.command()(fetch)
app.add_typer(models.app, name="models")
app.add_typer(draft.app, name="draft")
app.add_typer(plan.app, name="plan")
app.command()(doctor)
app.command()(certs)
app.command()(calibrate)
app.add_typer(config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("triptych-runtime"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of `triptych` itself."""


def main() -> None:
    app()
