"""Bytes that come or go: a bar on a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from triptych.launch.console import say

if TYPE_CHECKING:
    from rich.console import Console

_LINE_S = 5.0  # between two lines of a log


@contextlib.contextmanager
def show_bytes(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what is told (bytes done, bytes in all); `what`: e.g. "pulling smollm2-135m"."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    if not console.is_terminal:
        yield Lines(what, lambda line: say(console, line))
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    speed = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, *speed, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


class Lines:
    """The first news, the last, and one every few seconds between them."""

    def __init__(
        self, what: str, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._show = show
        self._clock = clock
        self._next_s = 0.0
        self._first: tuple[float, int] | None = None  # when it began, with how many bytes
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        began, had = self._first = self._first or (now, done)
        over = total > 0 and done >= total
        if self._ended or (now < self._next_s and not over):
            return
        self._next_s, self._ended = now + _LINE_S, over
        rate = (done - had) / (now - began) if now > began else 0.0
        self._show(self._what + ": " + _state(done, total, max(rate, 0.0)))


def _state(done: int, total: int, rate: float) -> str:
    """`rate`: bytes/s; 0: not known."""
    of = f" of {total >> 20}" if total else ""
    state = f"{done >> 20}{of} MiB"
    if rate:
        state += f", {rate / 1e6:.1f} MB/s"
        if total > done:
            state += f", {_duration((total - done) / rate)} left"
    return state


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
