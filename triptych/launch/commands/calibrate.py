"""`triptych calibrate`: a scale for sparse attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.launch.commands.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.calibrate.sparse import Calibration


def calibrate(
    skip: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="Share of tiles to leave out at the text's end."),
    ] = 0.5,
    text: Annotated[
        Path | None,
        typer.Option(help="Like what will be served; default: Python's language reference."),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Lengths to try. Repeatable; default: the context, 1/2 and 1/4 of it."),
    ] = None,
    max_omitted: Annotated[
        float | None, typer.Option(min=0.0, help="ε that no row may exceed; default: any.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Find the scale of sparse attention that leaves out a share of the context, and what it costs.

    Sparse attention gives other numbers than dense attention: look at the last columns before you
    switch it on.
    """
    from triptych.calibrate.sparse import calibrate as run
    from triptych.calibrate.text import fixed_text
    from triptych.config import load_config
    from triptych.launch.commands.models import ensure_model
    from triptych.launch.console import open_console

    console = open_console()
    loaded = load_config(config, overrides or ())
    ensure_model(loaded.model, console)
    words = fixed_text()[1] if text is None else _read(text)
    with console.status("loading the model") as status:
        found = run(loaded, words, skip, tokens or (), max_omitted, status.update)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(found)))
    else:
        _show(found, console)


def _read(path: Path) -> str:
    from triptych.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path}: cannot be read: {error}") from error


def _show(found: Calibration, console: Console) -> None:
    from rich.table import Table

    from triptych.launch.console import say

    table = Table(title=f"scale {found.scale:g}")
    for name in ("tokens", "own scale", "left out, prompt", "left out, decode", "largest ε",
                 "same next token", "KL, nats"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in found.lengths:
        table.add_row(
            f"{row.tokens:,}", f"{row.scale:.3g}", f"{row.prompt:.0%}", f"{row.decode:.0%}",
            f"{row.omitted:.2g}", f"{row.same_token:.1%}", f"{row.kl:.2g}",
        )  # fmt: skip
    console.print(table)
    most = max(row.decode for row in found.lengths)
    if most < found.wanted - 0.1:
        say(console, f"! {found.wanted:.0%} cannot be reached; {most:.0%} is the most here")
    limit = "" if found.max_omitted is None else f", max_omitted: {found.max_omitted:g}"
    say(console, f"router.sparse_attention: {{scale: {found.scale:g}{limit}}}")
