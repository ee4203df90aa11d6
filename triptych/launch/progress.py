"""Bytes that come or go: a bar on a terminal, a line per quarter in a log file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from triptych.launch.console import say

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def show_bytes(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what is told (bytes done, bytes in all); `what`: e.g. "pulling smollm2-135m"."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield _Quarters(what, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Quarters:
    def __init__(self, what: str, console: Console) -> None:
        self._what = what
        self._console = console
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        if done >= self._next * total:
            self._next = done // (total / 4) / 4 + 0.25
            say(self._console, f"{self._what}: {done >> 20} of {total >> 20} MiB")
