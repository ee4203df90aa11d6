"""Which pages a sparse draft reads. Pure."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from triptych.engine.pages import PageTable

# (shares [L, Hkv, pages], tail, count) → `count` pages below `tail`, [L, Hkv, count], ascending.
PageChoice = Callable[[NDArray[np.float32], int, int], NDArray[np.int32]]


def best_pages(shares: NDArray[np.float32], tail: int, count: int) -> NDArray[np.int32]:
    """Those that got most attention, and the first one, on which heads with nothing to find rest
    (attention sinks: StreamingLLM, arXiv 2309.17453).
    """
    ranked = np.nan_to_num(shares[..., :tail], nan=0.0)
    ranked[..., 0] = np.inf
    best = np.argpartition(ranked, tail - count, axis=-1)[..., tail - count :]
    return np.sort(best, axis=-1).astype(np.int32)


def recent_pages(shares: NDArray[np.float32], tail: int, count: int) -> NDArray[np.int32]:
    """The last ones before the tail."""
    own = np.arange(tail - count, tail, dtype=np.int32)
    return np.broadcast_to(own, (*shares.shape[:2], count))


def page_budget(tokens: int, ratio: float, min_tokens: int, page_tokens: int) -> int:
    """Pages to read of a sequence of `tokens` tokens."""
    return -(-max(min_tokens, int(ratio * tokens)) // page_tokens)


def make_table(
    shares: NDArray[np.float32],
    tail: int,
    end: int,
    count: int,
    windows: Seq[int | None],
    choose: PageChoice = best_pages,
) -> PageTable:
    """The tail, pages [tail, end), and `count` pages before it; all if there are no more.

    A layer with a window reads the last ones: their distances, and so its mask, stay true.
    """
    count = min(count, tail)
    chosen = (recent_pages if count == tail else choose)(shares, tail, count)
    if count < tail:
        windowed = np.array([window is not None for window in windows])
        chosen = np.where(windowed[:, None, None], recent_pages(shares, tail, count), chosen)
    behind = np.broadcast_to(np.arange(tail, end), (*shares.shape[:2], end - tail))
    return PageTable(np.concatenate([chosen, behind], axis=-1, dtype=np.int32), tail - count)
