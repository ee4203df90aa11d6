"""Which jobs of a step begin with the same blocks, so that attention reads these once for all.

Blocks are compared, not tokens: the prefix cache has already given the same ones to all who may
share them. Only the kernel's time depends on what is found here, no bit of a result.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

TILE_TOKENS = 128  # kTileTokens in kv_cache.h: what is shared in part is not shared
MIN_SAVED_TILES = 2  # readings of a tile; below, gathering the jobs' lanes costs more


class Shared(NamedTuple):
    """What a job has in common with the others of its bundle: its first slots."""

    bundle: int  # 0: none
    slots: int


NOTHING = Shared(0, 0)


def share_prefixes(
    tables: Seq[Seq[int]],
    known: Seq[int],
    block_tokens: int,
    *,
    tile_tokens: int = TILE_TOKENS,
    min_saved_tiles: int = MIN_SAVED_TILES,
) -> list[Shared]:
    """By job. `tables`: block tables; `known`: slots before the job's first row, 0 for a job that
    is to stay alone. `tile_tokens`: what a kernel can share, whole; the defaults are the CPU's.

    Each job is in one bundle at most. Of a bundle with others inside it, the outer one or the inner
    ones are taken, whichever saves more; who is left out by the inner ones stays alone.
    """
    found = [NOTHING] * len(tables)
    full = [count // block_tokens for count in known]
    met = Counter(table[0] for table, count in zip(tables, full, strict=True) if count)
    keys = [
        (array("i", table[:count]).tobytes(), job)
        for job, (table, count) in enumerate(zip(tables, full, strict=True))
        if count and met[table[0]] > 1
    ]
    if not keys:
        return found
    keys.sort()  # in whatever order, those that begin alike are neighbours
    blocks = [_common(keys[i - 1][0], keys[i][0]) for i in range(1, len(keys))]
    tiles = [count * block_tokens // tile_tokens for count in blocks]
    for number, run in enumerate(_best_runs(tiles, min_saved_tiles), start=1):
        for _, job in keys[run.first : run.end]:
            found[job] = Shared(number, run.tiles * tile_tokens)
    return found


def _common(a: bytes, b: bytes) -> int:
    """Leading 32-bit numbers that are equal."""
    one, other = np.frombuffer(a, np.int32), np.frombuffer(b, np.int32)
    count = min(len(one), len(other))
    differs = one[:count] != other[:count]
    return int(differs.argmax()) if differs.any() else count


@dataclass(slots=True)
class _Run:
    """Neighbours that share so many tiles, and what was chosen of the runs within."""

    tiles: int
    first: int
    inner: list[_Run] = field(default_factory=list)
    end: int = 0

    @property
    def saved(self) -> int:
        return self.tiles * (self.end - self.first - 1)

    def best(self, end: int, min_saved: int) -> list[_Run]:
        self.end = end
        own = self.saved
        if own < min_saved or own < sum(run.saved for run in self.inner):
            return self.inner
        return [self]


def _best_runs(tiles: Seq[int], min_saved: int) -> list[_Run]:
    """Disjoint runs of neighbours; `tiles[i]`: what number i shares with number i + 1.

    A run is open as long as its neighbours share as much; runs within runs lie on a stack (the
    intervals of a suffix array, Abouelhoda et al. 2004).
    """
    stack = [_Run(0, 0)]
    for at, shared in enumerate([*tiles, 0]):
        first, closed = at, list[_Run]()
        while stack[-1].tiles > shared:
            run = stack.pop()
            run.inner += closed
            first, closed = run.first, run.best(at + 1, min_saved)
        if stack[-1].tiles < shared:
            stack.append(_Run(shared, first))
        stack[-1].inner += closed
    return stack[0].inner
