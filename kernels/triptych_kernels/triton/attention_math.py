"""Device functions of every attention kernel: logits, the fold of one tile, the merge of splits.

All kernels do the same to a row, whoever computes it: keys are visited in tiles aligned to position
0, tiles of a split are folded into one state, and states of splits are merged in position order. A
tile that a row does not see changes none of its bits. Logits are in base 2: scale × log2(e) is
folded into them once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych_kernels.triton.common import wide

NOTHING = tl.constexpr(float("-inf"))
# Of float32 operands alone: three products of tf32, some 2⁻²¹ off. As float32 proper they need no
# tensor core, but thousands of spilled registers on sm_90.
PRECISION = tl.constexpr("tf32x3")


@triton.jit
def blocks_of(table, slots, exist, PAGE: tl.constexpr):
    """In which blocks slots [N] of a sequence lie; `table` holds its blocks in order."""
    return tl.load(table + slots // PAGE, mask=exist, other=0).to(tl.int64)


@triton.jit
def load_keys(
    keys, blocks, places, block_stride, token_stride, exist, D: tl.constexpr, WIDTH: tl.constexpr
):
    """[WIDTH, N], transposed; zeros where nothing exists and behind D. places: within blocks."""
    d = tl.arange(0, WIDTH)
    offsets = blocks * block_stride + places * token_stride
    mask = exist[None, :]
    if D != WIDTH:
        mask = mask & (d[:, None] < D)
    return tl.load(keys + offsets[None, :] + d[:, None], mask=mask, other=0.0)


@triton.jit
def load_values(
    values, blocks, places, block_stride, token_stride, exist, D: tl.constexpr, WIDTH: tl.constexpr
):
    """[N, WIDTH]; zeros where nothing exists: a leftover there may be NaN, and NaN × 0 is."""
    d = tl.arange(0, WIDTH)
    offsets = blocks * block_stride + places * token_stride
    mask = exist[:, None]
    if D != WIDTH:
        mask = mask & (d[None, :] < D)
    return tl.load(values + offsets[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def logits(q, k, scale, cap, CAPPED: tl.constexpr):
    """q [M, D] and k [D, N] → logits in base 2 [M, N].

    Uncapped: × scale, which has log2(e) in it. Capped: cap × tanh(× scale), with 1 / softcap in the
    scale and log2(e) in the cap.
    """
    s = tl.dot(wide(q), wide(k), input_precision=PRECISION) * scale
    if CAPPED:
        s = cap - 2.0 * cap / (1.0 + tl.exp2(s * 2.8853900817779268))  # 2 × log2(e)
    return s


@triton.jit
def finite(best):
    """A largest logit, or 0 where there is none yet: −inf − (−inf) is no number."""
    return tl.where(best == NOTHING, 0.0, best)


@triton.jit
def fold(best, total, out, s, v):
    """A row's state and the logits s [M, N] of a tile with values v [N, D] → its next state."""
    top = tl.maximum(best, tl.max(s, 1))
    base = finite(top)
    p = tl.exp2(s - base[:, None])
    kept = tl.exp2(best - base)
    total = total * kept + tl.sum(p, 1)
    weights = wide(p.to(v.dtype))
    out = tl.dot(weights, wide(v), out * kept[:, None], input_precision=PRECISION)
    return top, total, out


@triton.jit
def merge(best, total, out, next_best, next_total, next_out):
    """Two states of a row, the second one of later positions → one."""
    top = tl.maximum(best, next_best)
    base = finite(top)
    kept, added = tl.exp2(best - base), tl.exp2(next_best - base)
    total = total * kept + next_total * added
    return top, total, out * kept[:, None] + next_out * added[:, None]


@triton.jit
def add_sink(best, total, out, sink):
    """A logit in base 2 that takes its share of the softmax and adds nothing."""
    top = tl.maximum(best, sink)
    base = finite(top)
    kept = tl.exp2(best - base)
    return top, total * kept + tl.exp2(sink - base), out * kept[:, None]


@triton.jit
def finish(best, total, out):
    """A state → the row's result, and log2 of its sum: zeros and −inf of an empty one."""
    empty = total == 0.0  # never of a NaN
    some = tl.where(empty, 1.0, total)
    lse = tl.where(empty, NOTHING, best + tl.log2(some))
    return out / some[:, None], lse
