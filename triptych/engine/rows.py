"""Row jobs: what one forward computes."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class RowJob:
    """Rows [start, end) of one sequence, a prompt chunk or a decode step, and a draft behind them.

    The rows' KV goes into the sequence's blocks: row r's into slot r, node i's of the draft into
    slot end + i. Row r attends to positions ≤ r of the same blocks, a node to all rows before the
    draft and to its own path.
    """

    sequence: Sequence
    start: int
    end: int
    draft: Draft = NO_DRAFT
    first_block: int = 0  # of the sequence's; the rows see nothing of earlier ones

    @property
    def seen_blocks(self) -> list[int]:
        blocks = self.sequence.blocks
        return blocks[self.first_block :] if self.first_block else blocks

    @property
    def num_rows(self) -> int:
        return self.end - self.start + len(self.draft)

    @property
    def reaches_end(self) -> bool:
        """The last row's hidden state is wanted: it predicts a token that is not known yet."""
        return self.end == len(self.sequence.tokens)

    @property
    def num_wanted(self) -> int:
        """Rows, the last ones, whose hidden states are wanted: that row's and each node's."""
        return 1 + len(self.draft) if self.reaches_end else 0

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.end], *self.draft.tokens]

    @property
    def parents(self) -> list[int] | None:
        """Rows of the job that stand before each row; −1: what was computed earlier. None: all rows
        stand one behind the other.
        """
        if self.draft.parents is None:
            return None
        known = self.end - self.start
        return [*range(-1, known - 1), *(known + parent for parent in self.draft.parents)]

    @property
    def positions(self) -> list[int]:
        depths = self.draft.depths() if self.draft else []
        return [*range(self.start, self.end), *(self.end - 1 + depth for depth in depths)]


def wanted_rows(jobs: Seq[RowJob]) -> list[int]:
    """Indices of all wanted rows in the batch."""
    wanted: list[int] = []
    row = 0
    for job in jobs:
        row += job.num_rows
        wanted.extend(range(row - job.num_wanted, row))
    return wanted
