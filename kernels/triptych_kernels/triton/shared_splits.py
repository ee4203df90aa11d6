"""What sequences of a batch share, so that decode.py reads it once for all of them.

Cascades (FlashInfer; "Hydragen", arXiv 2402.05099) merge a common prefix with what is behind it:
another order of merges than without it, and so other bits. Here whole splits are shared, from
position 0 on. A split's state is the same whoever folds it beside whom, and states are merged by
row in position order, as without sharing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedSplits:
    """Bundles of sequences that begin with the same blocks.

    Rows of bundles stand first in the batch: those of the first one's members, of the second one's,
    and so on; behind them whoever shares nothing. So a bundle is to the kernel what a sequence is.
    """

    own: Tensor  # int32 [B, 2]: the first split that a sequence reads for itself, and their end
    splits: Tensor  # int32 [G, 2]: 0, and how many a bundle shares
    row_starts: Tensor  # int32 [G + 1]
    tables: Tensor  # int32 [G, P]
    lengths: Tensor  # int32 [G]: tokens of the shared splits, and one for each of its rows
    max_rows: int  # of a bundle, or more; like the next, it shows in no bit
    max_splits: int  # of a bundle, or more
