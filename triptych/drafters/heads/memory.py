"""How far a head knows a sequence: which rows have KV, and which states wait to become rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

SLACK = 64  # rows beyond the window: dropping them takes longer than keeping them


@dataclass(slots=True)
class Memory:
    """Of one sequence. Rows [origin, synced) are in the head's KV; those up to `end` wait as states
    of the target. A head may begin at any block: what lies before, it never saw.
    """

    block_tokens: int
    window: int  # rows that wait, at most, but for a slack
    origin: int = 0
    synced: int = 0
    blocks: list[int] = field(default_factory=list)  # that held the rows, as they were
    _waiting: list[Tensor] = field(default_factory=list)
    _begin: int = 0  # row of the first that waits
    end: int = 0  # row behind the last one

    def feed(self, start: int, taps: Tensor) -> None:
        """taps [m, taps · H] of rows from `start` on. Not the next ones: it begins anew there."""
        if start != self.end:
            self._waiting, self._begin, self.end = [], start, start
            self.restart(start)
        self._waiting.append(taps)
        self.end += taps.size(0)  # len(taps) takes three times as long
        surplus = self.end - self._begin - self.window
        if surplus > SLACK:
            self._drop(surplus)
            self.restart(self._begin)

    def restart(self, row: int) -> None:
        """Nothing is known before the first block that begins at `row` or behind it."""
        size = self.block_tokens
        self.origin = self.synced = -(-row // size) * size
        self.blocks = []

    def trust(self, first_block: int) -> None:
        """Rows from this block up to `synced` are in the KV, computed for somebody before."""
        self.origin = first_block * self.block_tokens

    def take(self, end: int) -> Tensor | None:
        """States of rows [synced, end), which wait no longer; None when there are none."""
        if self._begin < self.synced:
            self._drop(min(self.synced, self.end) - self._begin)
        count = min(end, self.end) - self.synced
        if count <= 0 or self._begin > self.synced:
            return None
        states = torch.cat(self._waiting)
        self._waiting = [states[count:]] if count < len(states) else []
        self._begin += count
        return states[:count]

    def _drop(self, rows: int) -> None:
        self._begin += rows
        while rows > 0 and self._waiting:
            first = self._waiting[0]
            if len(first) > rows:
                self._waiting[0] = first[rows:]
                return
            rows -= len(first)
            del self._waiting[0]
