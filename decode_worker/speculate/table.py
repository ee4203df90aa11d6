"""A draft length by batch size, as an operator who measured would set it (TLT, 2511.16665)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from decode_worker.speculate.fixed import Fixed, Unlearned
from decode_worker.speculate.policy import Budget, StepLoad


class Table(Unlearned):
    """`nodes_from`: {least batch size: nodes}; smaller batches than all of them draft nothing.

    {1: 8, 4: 4, 16: 0} drafts 8 nodes for up to 3 sequences, 4 for up to 15, then none.
    """

    def __init__(self, drafter: str, nodes_from: Mapping[int, int]) -> None:
        self._sizes = sorted(nodes_from)
        self._fixed = [Fixed(drafter, nodes_from[size]) for size in self._sizes]
        self._none = Fixed(drafter, 0)

    def plan(self, load: StepLoad) -> list[Budget]:
        row = bisect_right(self._sizes, len(load.candidates)) - 1
        return (self._fixed[row] if row >= 0 else self._none).plan(load)
