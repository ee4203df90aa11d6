"""What a person sees while a cluster starts: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.console import say

_MARKS = {ProcessState.READY: ("✓", "green"), ProcessState.EXITED: ("✗", "red")}


class Board:
    """Shows events from `show` until its block ends."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._began = time.monotonic()
        self._width = max(map(len, names))
        self._shown = {name: ProcessEvent(name, ProcessState.STARTING) for name in names}
        self._took: dict[str, float] = {}
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console, get_renderable=self._table, refresh_per_second=12, transient=False
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, event: ProcessEvent) -> None:
        news = self._shown[event.name].state is not event.state
        self._shown[event.name] = event
        if event.state is ProcessState.READY:
            self._took.setdefault(event.name, time.monotonic() - self._began)
        if news and not self._console.is_terminal:
            line = f"{event.name:<{self._width}}  {event.state:<8}  {self._note(event)}"
            say(self._console, line.rstrip())

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for event in self._shown.values():
            mark, colour = _MARKS.get(event.state, ("", "yellow"))
            sign = Text(mark, style=colour) if mark else self._spinner
            state = Table.grid(padding=(0, 1))
            state.add_row(sign, Text(event.state, style=colour))
            table.add_row(Text(event.name), state, Text(self._note(event), style="dim"))
        return table

    def _note(self, event: ProcessEvent) -> str:
        took = self._took.get(event.name)
        if event.state is not ProcessState.READY or took is None:
            return event.detail
        return f"{took:.1f} s  {event.detail}".rstrip()
