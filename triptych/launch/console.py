"""How the commands speak: the same words on a terminal and in a log file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 200  # columns of what is no terminal: nobody should read wrapped tables in a log


class Row(NamedTuple):
    """A line of a small table."""

    name: str
    value: str
    note: str = ""


def open_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def say(console: Console, text: str = "") -> None:
    """Prints text as it is: no markup, no colours by guess, no line breaks of rich's own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def write(console: Console, text: str) -> None:
    """A piece of a line, at once."""
    console.file.write(text)
    console.file.flush()


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
