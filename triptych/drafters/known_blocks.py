"""Which of the pool's blocks a drafter has KV of its own for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class KnownBlocks:
    """A drafter's KV lies under the target's block ids, so a prefix that the target finds in its
    cache is there for the drafter too, if it had computed it. A block handed out anew is not.
    """

    def __init__(self, generations: NDArray[np.uint64]) -> None:
        """generations [num_blocks]: the pool's; rises with every hand-out of a block."""
        self._generations = generations
        self._known = np.zeros(len(generations), dtype=np.uint64)  # generation + 1

    def add(self, blocks: Sequence[int]) -> None:
        """They are full of rows of the sequence that holds them now."""
        ids = list(blocks)
        self._known[ids] = self._generations[ids] + np.uint64(1)

    def knows(self, block: int) -> bool:
        return bool(self._known[block] == self._generations[block] + np.uint64(1))
