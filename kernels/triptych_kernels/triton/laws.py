"""What rows of logits say of the next token, for rules that need probabilities: a row and four
numbers instead of a tensor of them.

Sums are float32 ones in a fixed order: the same bits for the same row on one kind of device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.filters import (
    ROW_SIGNATURE,
    TILE,
    Rows,
    greatest_logit,
    kept_of,
    scaled_logits,
    stays,
)

_PAD = tl.constexpr(-1)
_LOWEST = tl.constexpr(-math.inf)
_BEHIND_ALL = tl.constexpr((1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class Laws:
    """What R rows of logits say of the next token, after temperature and filters."""

    logits: Tensor  # [R, V]
    facts: Tensor  # float32 [R, 4]: scale, floor, greatest scaled logit, 1 / sum of exponentials
    last: Tensor  # int64 [R], see `Kept`
    filtered: bool


def laws_of(rows: Rows) -> Laws:
    """Of rows with a positive temperature. A row without any logit above −∞ has no tokens."""
    kept = kept_of(rows)
    facts = rows.scales.new_empty(len(rows.scales), 4)
    _sum_laws[(len(facts),)](
        rows.logits,
        rows.scales,
        kept.last,
        kept.floor,
        facts,
        rows.logits.stride(0),
        rows.logits.shape[1],
        FILTERED=rows.filtered,
        TILE=TILE,
        num_warps=8,
        **NO_FUSION,
    )
    return Laws(rows.logits, facts, kept.last, rows.filtered)


@triton.jit
def _exponentials(x, tokens, greatest, last, floor, FILTERED: tl.constexpr):
    kept = x > _LOWEST
    if FILTERED:
        kept = kept & stays(x, tokens, last, floor)
    return tl.where(kept, tl.where(x == greatest, 1.0, tl.exp(x - greatest)), 0.0)


@triton.jit
def _sum_laws(logits, scales, lasts, floors, facts, stride, vocab, FILTERED: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    scale = tl.load(scales + row)
    floor = tl.full((), _LOWEST, tl.float32)
    last = tl.full((), 0, tl.int64)
    if FILTERED:
        floor, last = tl.load(floors + row), tl.load(lasts + row)
    greatest = greatest_logit(logits, scale, vocab, TILE)
    sums = tl.zeros((TILE,), tl.float32)
    for first in range(0, vocab, TILE):
        at = first + tl.arange(0, TILE)
        x = scaled_logits(logits, at, scale, at < vocab)
        sums += _exponentials(x, at, greatest, last, floor, FILTERED)
    total = tl.sum(sums, 0)
    facts += row * 4
    tl.store(facts, scale)
    tl.store(facts + 1, floor)
    tl.store(facts + 2, greatest)
    tl.store(facts + 3, tl.where(total > 0.0, 1.0 / total, 0.0))


# In the functions below a law is (logits, facts, last, stride) of `Laws` and the number of a row;
# of a one-hot one the first four stand for nothing.


@triton.jit
def chance(laws, row, tokens, valid, FILTERED: tl.constexpr):
    """P(token) of tokens [n] by a row; 0 where not valid."""
    logits, facts, lasts, stride = laws
    facts += row * 4
    x = scaled_logits(logits + row * stride, tokens, tl.load(facts), valid)
    last = tl.full((), 0, tl.int64)
    if FILTERED:
        last = tl.load(lasts + row)
    powers = _exponentials(x, tokens, tl.load(facts + 2), last, tl.load(facts + 1), FILTERED)
    return powers * tl.load(facts + 3)


@triton.jit
def chance_drafted(laws, row, drafted, tokens, valid, FILTERED: tl.constexpr,
                   ONE_HOT: tl.constexpr):  # fmt: skip
    """q(token) of tokens [n] at the node `row`, whose token is `drafted`."""
    if ONE_HOT:
        return (tokens == drafted).to(tl.float32)
    else:
        return chance(laws, row, tokens, valid, FILTERED)


@triton.jit
def reach(mass, tokens, passed, aim, found, possible):
    """One tile of an inverse distribution function: the first token at which the sum exceeds `aim`,
    the last one that has mass at all (rounding may leave the aim unreached), and the sum.
    """
    wide = mass.to(tl.float64)
    hit = (passed + tl.cumsum(wide, 0) > aim) & (mass > 0.0)
    found = tl.minimum(found, tl.min(tl.where(hit, tokens, _BEHIND_ALL), 0))
    possible = tl.maximum(possible, tl.max(tl.where(mass > 0.0, tokens, _PAD), 0))
    return passed + tl.sum(wide, 0), found, possible


AOT_CASES = (
    AotCase(
        "verify/laws/fp32",
        _sum_laws,
        {**ROW_SIGNATURE, "facts": "*fp32"},
        {"FILTERED": True, "TILE": TILE},
        num_warps=8,
        aligned=("logits", "stride"),
        mma=False,
    ),
)
