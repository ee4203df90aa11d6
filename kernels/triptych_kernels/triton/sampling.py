"""Drawing tokens on the device: the twin of `triptych_kernels.sampling`, equal to the bit.

A row is cut into slices of fixed size that are searched side by side: a token's score is a function
of its own logit, and the winner is a maximum in a total order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.sampling import Draw
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.filters import (
    ROW_SIGNATURE,
    TILE,
    Rows,
    kept_of,
    rows_of,
    scaled_logits,
    stays,
)
from triptych_kernels.triton.noise import may_beat, noise_bits, noise_key, noise_of_bits

SLICE = 16384  # tokens that one program searches

_NO_TOKEN = tl.constexpr(-1)
_LAST_ID = tl.constexpr((1 << 31) - 1)
_LOWEST = tl.constexpr(-math.inf)


def draw_tokens(draws: Sequence[Draw]) -> list[int]:
    """A token for each row, or NO_TOKEN. Among equal scores the lowest id wins."""
    return draw_rows(rows_of(draws)).tolist() if draws else []


def draw_rows(rows: Rows) -> Tensor:
    """The tokens int32 [N], NO_TOKEN for rows without any logit above −∞. Does not wait for the
    device.
    """
    num_rows, vocab_size = rows.logits.shape
    slices = -(-vocab_size // SLICE)
    kept = kept_of(rows)
    scores = rows.logits.new_empty(num_rows, slices, dtype=torch.float32)
    tokens = torch.empty_like(scores, dtype=torch.int32)
    _draw_slices[(num_rows, slices)](
        rows.logits,
        rows.scales,
        rows.seeds,
        rows.positions,
        kept.last,
        kept.floor,
        scores,
        tokens,
        rows.logits.stride(0),
        vocab_size,
        FILTERED=rows.filtered,
        SLICE=SLICE,
        TILE=TILE,
        **NO_FUSION,
    )
    winners = rows.logits.new_empty(num_rows, dtype=torch.int32)
    _meet_slices[(num_rows,)](
        scores, tokens, winners, slices, ROOM=triton.next_power_of_2(slices), **NO_FUSION
    )
    return winners


@triton.jit
def _draw_slices(logits, scales, seeds, positions, lasts, floors, scores, tokens, stride, vocab,
                 FILTERED: tl.constexpr, SLICE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """The best score of each slice and its lowest id; −∞ and NO_TOKEN where there is none."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    logits += row * stride
    scale = tl.load(scales + row)
    is_greedy = scale == 0.0
    factor = tl.where(is_greedy, 1.0, scale)
    key = noise_key(tl.load(seeds + row), tl.load(positions + row))
    best = tl.full((), _LOWEST, tl.float32)
    winner = tl.full((), _NO_TOKEN, tl.int32)
    end = tl.minimum(vocab, (part + 1) * SLICE)
    for first in range(part * SLICE, end, TILE):
        at = first + tl.arange(0, TILE)
        x = scaled_logits(logits, at, factor, at < end)
        if FILTERED:
            kept = stays(x, at, tl.load(lasts + row), tl.load(floors + row))
            x = tl.where(kept, x, _LOWEST)
        bits = noise_bits(key, at)
        hopeful = tl.where(is_greedy, x > best, may_beat(x, bits, best))
        if tl.max(hopeful.to(tl.int32), 0) > 0:
            score = x + tl.where(is_greedy, 0.0, noise_of_bits(bits))
            top = tl.max(score, 0)
            if top > best:  # ids ascend: of equal scores the first stays
                best = top
                winner = tl.min(tl.where(score == top, at, _LAST_ID), 0)
    slices = tl.num_programs(1)
    tl.store(scores + row * slices + part, best)
    tl.store(tokens + row * slices + part, winner)


@triton.jit
def _meet_slices(scores, tokens, winners, slices, ROOM: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, ROOM)
    score = tl.load(scores + row * slices + part, mask=part < slices, other=_LOWEST)
    token = tl.load(tokens + row * slices + part, mask=part < slices, other=_NO_TOKEN)
    best = tl.max(score, 0)
    wins = (score == best) & (token != _NO_TOKEN)
    winner = tl.min(tl.where(wins, token, _LAST_ID), 0)
    tl.store(winners + row, tl.where(best > _LOWEST, winner, _NO_TOKEN))


AOT_CASES = (
    *(
        AotCase(
            f"draw_tokens/fp32/{name}",
            _draw_slices,
            {
                **ROW_SIGNATURE,
                **dict.fromkeys(("seeds", "positions"), "*i64"),
                "scores": "*fp32",
                "tokens": "*i32",
            },
            {"FILTERED": filtered, "SLICE": SLICE, "TILE": TILE},
            aligned=("logits", "stride"),
            mma=False,
            exact=True,
        )
        for name, filtered in (("all", False), ("filtered", True))
    ),
    AotCase(
        "draw_tokens/meet",
        _meet_slices,
        {"scores": "*fp32", "tokens": "*i32", "winners": "*i32", "slices": "i32"},
        {"ROOM": 16},
        mma=False,
    ),
)
