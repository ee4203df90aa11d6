"""BLASST (arXiv 2512.12087): tiles whose logits are far below the largest one are not weighed.

A row leaves a tile out when 2^(its largest logit there − the largest one that the row knows) is
below its threshold: its sequence's, or, scaled, that over the positions that the row sees. The CTA
does not weigh the tile at all when all its rows do. Otherwise the tile weighs exactly nothing for
those that leave it out. So a row's result is its own, as without skipping: neither its neighbours
nor the chunk that it came in decide for it.

Splits do not know each other's logits. So what a row knows begins with the seed: the largest logit
of the first tile that it sees (attention sinks) and of the tile that it stands in. Both are never
left out, hence the seed is a logit that counts.

Of what it leaves out a row keeps account: N tokens below 2^t weigh N × 2^t at most. That sum over
the sum of all weights is ε, and the result lies within ε / (1 + ε) × the largest distance of two
values of what it would be without skipping. With a budget a row leaves nothing out that would raise
its ε above it. What is not a number is never left out: every comparison with it is false.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych_kernels.triton.attention_math import NOTHING, finite


@triton.jit
def log_threshold(threshold):
    """log2 of thresholds in (0, 1); −inf, which leaves nothing out, of other numbers and of NaN."""
    usable = (threshold > 0.0) & (threshold < 1.0)
    return tl.where(usable, tl.log2(tl.where(usable, threshold, 0.5)), NOTHING)


@triton.jit
def log_thresholds(
    thresholds, seq, positions, window, WINDOWED: tl.constexpr, SCALED: tl.constexpr
):
    """log2 of the sequence's threshold, or, SCALED, of each row's: that over what the row sees."""
    threshold = tl.load(thresholds + seq)
    if SCALED:
        seen = tl.maximum(positions + 1, 1)
        if WINDOWED:
            seen = tl.minimum(seen, window)
        threshold = threshold / seen.to(tl.float32)
    return log_threshold(threshold)


@triton.jit
def largest(s):
    """Of each row of logits [M, N]; +inf if there is a NaN."""
    return tl.max(tl.where(s != s, float("inf"), s), 1)


@triton.jit
def left_out(top, best, total, seed, omitted, unit, log_thr, budget, kept_tile, N: tl.constexpr):
    """Which rows leave out a tile whose largest logits are `top`, and their account afterwards.

    best, total: the split's state. omitted, in units of 2^unit: what the split has left out.
    budget: ε that this split may use up. kept_tile: rows that must weigh this tile.
    """
    known = tl.maximum(seed, best)
    base = finite(known)
    loss = N * tl.exp2(tl.minimum(top - base, 0.0))
    so_far = omitted * tl.exp2(unit - base)
    weighed = tl.maximum(1.0, total * tl.exp2(best - base))
    gone = (top < known + log_thr) & (so_far + loss <= budget * weighed) & ~kept_tile
    gone = gone & (top != NOTHING)
    return gone, so_far + tl.where(gone, loss, 0.0), known


@triton.jit
def merge_omitted(omitted, unit, next_omitted, next_unit):
    """Accounts of two splits → one."""
    top = tl.maximum(unit, next_unit)
    base = finite(top)
    return omitted * tl.exp2(unit - base) + next_omitted * tl.exp2(next_unit - base), top


@triton.jit
def certificate(omitted, unit, lse):
    """ε of each row."""
    some = omitted > 0.0
    return tl.where(some, omitted * tl.exp2(tl.where(some, unit - lse, 0.0)), 0.0)
