"""Top-k, top-p and min-p without sorting: the twin of `triptych_kernels.filter_logits`, to the bit.

What the filters leave of a row is told by its last token (by logit, of equal ones by id) and a
floor. Every kernel behind them asks each token whether it comes before that one, so nothing of the
size of the vocabulary is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.sampling import GREEDY_BELOW, Draw, inverse_temperature, min_p_log
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.keys import (
    DIGIT_BITS,
    crossing_digit,
    digit_sums,
    order_key,
    token_key,
    value_of_key,
)

TILE = 1024
_MAX_INT = (1 << 31) - 1

_LOWEST = tl.constexpr(-math.inf)
_WEIGHT_BITS = tl.constexpr(40)
_LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
_ROUND = tl.constexpr(1.5 * 2.0**23)


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of logits and how a token is drawn from each."""

    logits: Tensor  # [N, V] of any floating type; what is no number counts as −∞
    scales: Tensor  # float32 [N], 1 / temperature; 0: greedy, without filters
    seeds: Tensor  # int64 [N], the bits of a uint64
    positions: Tensor  # int64 [N], of the drawn tokens
    top_k: Tensor  # int32 [N]; 0: all
    top_p: Tensor  # float64 [N]; 1: all
    min_p_log: Tensor  # float32 [N], natural; −∞: all
    filtered: bool  # whether any row drops tokens


@dataclass(frozen=True, slots=True)
class Kept:
    """What the filters leave of each row: the tokens whose key is not below `last` and whose scaled
    logit is not below `floor`.
    """

    last: Tensor  # int64 [N], the bits of a `token_key`; 0: all
    floor: Tensor  # float32 [N]; −∞: all


def rows_of(draws: Sequence[Draw]) -> Rows:
    """Copies draws, which must be equally long, into a batch on their device."""
    logits = torch.stack([draw.logits for draw in draws])
    device = logits.device
    scales = [
        inverse_temperature(draw.temperature) if draw.temperature >= GREEDY_BELOW else 0.0
        for draw in draws
    ]
    seeds = torch.tensor([draw.seed % (1 << 64) for draw in draws], dtype=torch.uint64)
    return Rows(
        logits,
        torch.tensor(scales, dtype=torch.float64).float().to(device),
        seeds.view(torch.int64).to(device),
        torch.tensor([draw.position for draw in draws], device=device),
        torch.tensor(
            [min(draw.top_k, _MAX_INT) for draw in draws], dtype=torch.int32, device=device
        ),
        torch.tensor([draw.top_p for draw in draws], dtype=torch.float64, device=device),
        torch.tensor([min_p_log(draw.min_p) for draw in draws], device=device),
        any(
            draw.temperature >= GREEDY_BELOW
            and (0 < draw.top_k < draw.logits.shape[0] or draw.top_p < 1.0 or draw.min_p > 0.0)
            for draw in draws
        ),
    )


def filter_rows(rows: Rows) -> Kept:
    """Top-k, then top-p on what is left, then min-p, as `triptych_kernels.filter_logits`."""
    num_rows, vocab_size = rows.logits.shape
    kept = Kept(rows.seeds.new_empty(num_rows), rows.scales.new_empty(num_rows))
    _filter_rows[(num_rows,)](
        rows.logits,
        rows.scales,
        rows.top_k,
        rows.top_p,
        rows.min_p_log,
        kept.last,
        kept.floor,
        rows.logits.stride(0),
        vocab_size,
        TILE=TILE,
        num_warps=8,
        **NO_FUSION,
    )
    return kept


def kept_of(rows: Rows) -> Kept:
    """Of rows without filters anything: kernels do not read it then."""
    return filter_rows(rows) if rows.filtered else Kept(rows.seeds, rows.scales)


@triton.jit
def scaled_logits(logits, at, scale, valid):
    """Logits at places [n] as the filters see them: no NaN, times the scale; −∞ where not valid."""
    raw = tl.load(logits + at, mask=valid, other=_LOWEST).to(tl.float32)
    return tl.where(raw == raw, raw, _LOWEST) * scale


@triton.jit
def stays(x, tokens, last, floor):
    """Whether tokens [n] with scaled logits x [n] are kept, see `Kept`."""
    return (token_key(order_key(x), tokens) >= last.to(tl.uint64, bitcast=True)) & ~(x < floor)


@triton.jit
def token_weights(x, greatest):
    """2⁴⁰ · e^(x − greatest) as whole numbers int64 [n]; the steps of
    `triptych_kernels.sampling.token_weights`, each rounded once.
    """
    gap = tl.maximum(tl.where(x == greatest, 0.0, x - greatest), -30.0)
    power = gap * _LOG2_E
    n = (power + _ROUND) - _ROUND
    f = power - n
    p = f * float.fromhex("0x1.5bba14p-10") + float.fromhex("0x1.3cea88p-7")
    p = p * f + float.fromhex("0x1.c6b752p-5")
    p = p * f + float.fromhex("0x1.ebf9bcp-3")
    p = p * f + float.fromhex("0x1.62e42ap-1")
    p = p * f + 1.0
    scale = ((n.to(tl.int32) + (_WEIGHT_BITS + 127)) << 23).to(tl.float32, bitcast=True)
    return (p * scale).to(tl.int64)


@triton.jit
def greatest_logit(logits, scale, vocab, TILE: tl.constexpr):
    """Of one row, scaled."""
    best = tl.full((TILE,), _LOWEST, tl.float32)
    for first in range(0, vocab, TILE):
        at = first + tl.arange(0, TILE)
        best = tl.maximum(best, scaled_logits(logits, at, scale, at < vocab))
    return tl.max(best, 0)


@triton.jit
def _amounts(x, tokens, valid, greatest, last, WEIGHED: tl.constexpr):
    """What each token adds: 1 of every one, or its weight if it is kept so far."""
    if WEIGHED:
        kept = valid & stays(x, tokens, last, _LOWEST)
        return tl.where(kept, token_weights(x, greatest), 0)
    else:
        return valid.to(tl.int64)


@triton.jit
def _last_of(logits, scale, vocab, greatest, last, wanted, WEIGHED: tl.constexpr,
             TILE: tl.constexpr):  # fmt: skip
    """The `token_key` at which the amounts, of greatest keys first, reach `wanted`: digit by digit
    of the logit, then by id among equal ones. As int64.
    """
    prefix = tl.full((), 0, tl.uint32)
    for shift in tl.static_range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        sums = tl.zeros((16,), tl.int64)
        for first in range(0, vocab, TILE):
            at = first + tl.arange(0, TILE)
            x = scaled_logits(logits, at, scale, at < vocab)
            amounts = _amounts(x, at, at < vocab, greatest, last, WEIGHED)
            sums += digit_sums(order_key(x), amounts, prefix, shift)
        digit, wanted = crossing_digit(sums, wanted)
        prefix = (prefix << DIGIT_BITS) | digit.to(tl.uint32)
    if WEIGHED:
        value = tl.full((16,), 0.0, tl.float32) + value_of_key(prefix)
        each = tl.maximum(tl.max(token_weights(value, greatest), 0), 1)
        wanted = (wanted + each - 1) // each
    token = _id_of_equal(logits, scale, vocab, prefix, wanted, TILE)
    return token_key(prefix, token).to(tl.int64, bitcast=True)


@triton.jit
def _id_of_equal(logits, scale, vocab, key, number, TILE: tl.constexpr):
    """The id of the number-th token, from 1 on, that has this key."""
    found = tl.full((), 0, tl.int32)
    passed = tl.full((), 0, tl.int64)
    for first in range(0, vocab, TILE):
        at = first + tl.arange(0, TILE)
        equal = (order_key(scaled_logits(logits, at, scale, at < vocab)) == key) & (at < vocab)
        count = passed + tl.cumsum(equal.to(tl.int32), 0)
        here = equal & (count == number)
        found += tl.sum(tl.where(here, at, 0), 0)
        passed += tl.sum(equal.to(tl.int32), 0)
    return found


@triton.jit
def _filter_rows(logits, scales, top_k, top_p, min_p_log, lasts, floors, stride, vocab,
                 TILE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    scale = tl.load(scales + row)
    last = tl.full((), 0, tl.int64)
    floor = tl.full((), _LOWEST, tl.float32)
    if scale > 0.0:
        greatest = greatest_logit(logits, scale, vocab, TILE)
        k = tl.load(top_k + row)
        if (k > 0) & (k < vocab):
            last = _last_of(logits, scale, vocab, greatest, last, k.to(tl.int64), False, TILE)
        share = tl.load(top_p + row)
        if share < 1.0:
            total = tl.full((), 0, tl.int64)
            for first in range(0, vocab, TILE):
                at = first + tl.arange(0, TILE)
                x = scaled_logits(logits, at, scale, at < vocab)
                total += tl.sum(_amounts(x, at, at < vocab, greatest, last, True), 0)
            wanted = tl.ceil(share * total.to(tl.float64)).to(tl.int64)
            wanted = tl.minimum(tl.maximum(wanted, 1), total)
            last = _last_of(logits, scale, vocab, greatest, last, wanted, True, TILE)
        log_share = tl.load(min_p_log + row)
        if log_share > _LOWEST:
            floor = greatest + log_share
    tl.store(lasts + row, last)
    tl.store(floors + row, floor)


ROW_SIGNATURE = {
    **dict.fromkeys(("logits", "scales", "floors"), "*fp32"),
    **dict.fromkeys(("stride", "vocab"), "i32"),
    "lasts": "*i64",
}

AOT_CASES = (
    AotCase(
        "filter_rows/fp32",
        _filter_rows,
        {**ROW_SIGNATURE, "top_k": "*i32", "top_p": "*fp64", "min_p_log": "*fp32"},
        {"TILE": TILE},
        num_warps=8,
        aligned=("logits", "stride"),
        mma=False,
        exact=True,
    ),
)
