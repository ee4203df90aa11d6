"""Reading a part of a sequence's KV: how much attention its pages get, and rows that read a few.

A page is a block of a sequence by its place: block tables change, pages do not.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.kv.layout import KvLayout


@dataclass(slots=True, eq=False)
class PageScores:
    """Attention that the wanted rows of one forward paid to each page: its share of the softmax,
    averaged over these rows and the query heads of a KV head (PillarAttn of SparseSpec, arXiv
    2512.01278). Zeros in layers with a window, whose reach is known.
    """

    sequence: Sequence
    shares: NDArray[np.float32] | None = None  # [L, Hkv, pages]; None: that forward did not run yet
    root: int = 0  # position of the first row that scored

    def make_room(self, job: RowJob, layout: KvLayout) -> NDArray[np.float32]:
        """Zeros for what the job's forward finds."""
        self.root = job.end - 1
        pages = layout.blocks_for(job.end + len(job.draft))
        self.shares = np.zeros((layout.num_layers, layout.num_kv_heads, pages), dtype=np.float32)
        return self.shares


class ScoreWishes:
    """The scores that the next forward is to fill in. Each wish is for one forward."""

    def __init__(self) -> None:
        self._wishes: dict[Sequence, PageScores] = {}

    def add(self, scores: PageScores) -> None:
        self._wishes[scores.sequence] = scores

    @property
    def waiting(self) -> bool:
        """Whether the next forward is asked for any."""
        return bool(self._wishes)

    def take(self, jobs: Seq[RowJob]) -> list[PageScores | None]:
        """Per job what it is to fill in, if it has wanted rows and they stand in one chain."""
        if not self._wishes:
            return [None] * len(jobs)
        wishes, self._wishes = self._wishes, {}
        return [
            wishes.get(job.sequence) if job.reaches_end and job.parents is None else None
            for job in jobs
        ]


@dataclass(frozen=True, slots=True, eq=False)
class PageTable:
    """Pages to be read, per layer and KV head.

    Ascending; the last ones, from `tail` on, are the same everywhere and have no gap: rows may be
    written there.
    """

    pages: NDArray[np.int32]  # [L, Hkv, P]
    skipped: int  # pages before the tail that are not read; as many everywhere

    def blocks(self, sequence: Sequence) -> NDArray[np.int32]:
        """The pool's blocks that hold them, [L, Hkv, P]."""
        return np.ascontiguousarray(np.array(sequence.blocks, dtype=np.int32)[self.pages])


class PageRow(NamedTuple):
    """One row of a sequence that reads some pages only, itself included.

    Its KV goes into the slot of its position and is provisional: a RowJob has to compute the
    position again before anybody else may read it.
    """

    sequence: Sequence
    token: int
    position: int
    table: PageTable

    def slot(self, block_tokens: int) -> int:
        """Its place among the slots that are read."""
        return self.position - self.table.skipped * block_tokens
