"""Row jobs: what one forward computes."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class RowJob:
    """Rows [start, end) of one sequence: a prompt chunk, a decode step, later a draft to verify.

    The rows' KV goes into the sequence's blocks; row r attends to positions ≤ r of the same blocks.
    """

    sequence: Sequence
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        return self.end - self.start

    @property
    def reaches_end(self) -> bool:
        """The last row's hidden state is wanted: it predicts a token that is not known yet."""
        return self.end == len(self.sequence.tokens)
