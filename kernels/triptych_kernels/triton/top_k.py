"""The k best places of long rows, ascending: what sparse attention reads. Nothing is sorted."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.keys import DIGIT_BITS, crossing_digit, digit_sums, order_key

TILE = 1024

_INF = tl.constexpr(math.inf)


def select_best(scores: Tensor, k: int) -> Tensor:
    """`triptych_kernels.reference_sparse.select_best`: float32 [..., N] → int32 [..., k]."""
    size = scores.shape[-1]
    flat = scores.reshape(-1, size)
    places = torch.full((len(flat), k), -1, dtype=torch.int32, device=scores.device)
    _select[(len(flat),)](
        flat, places, flat.stride(0), size, k, TILE=TILE, num_warps=8, **NO_FUSION
    )
    return places.view(*scores.shape[:-1], k)


@triton.jit
def _load(scores, at, size):
    x = tl.load(scores + at, mask=at < size, other=-_INF)
    return tl.where(x == x, x, _INF)


@triton.jit
def _select(scores, places, stride, size, k, TILE: tl.constexpr):
    """One row per program: digit by digit the key of the last place that is chosen, and how many of
    those with that key; then one walk that writes.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
    total = tl.full((), 0, tl.int64)
    for first in range(0, size, TILE):
        x = _load(scores, first + tl.arange(0, TILE), size)
        total += tl.sum((x > -_INF).to(tl.int64), 0)
    wanted = tl.minimum(total, k)
    prefix = tl.full((), 0, tl.uint32)
    for shift in tl.static_range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        sums = tl.zeros((16,), tl.int64)
        for first in range(0, size, TILE):
            x = _load(scores, first + tl.arange(0, TILE), size)
            sums += digit_sums(order_key(x), (x > -_INF).to(tl.int64), prefix, shift)
        digit, wanted = crossing_digit(sums, wanted)
        prefix = (prefix << DIGIT_BITS) | digit.to(tl.uint32)
    written = tl.full((), 0, tl.int32)
    equals = tl.full((), 0, tl.int32)
    for first in range(0, size, TILE):
        at = first + tl.arange(0, TILE)
        x = _load(scores, at, size)
        key = order_key(x)
        equal = ((key == prefix) & (x > -_INF)).to(tl.int32)
        passed = equals + tl.cumsum(equal, 0)
        chosen = ((key > prefix) | ((equal > 0) & (passed <= wanted))).to(tl.int32)
        place = written + tl.cumsum(chosen, 0) - 1
        tl.store(places + row * k + place, at, mask=chosen > 0)
        written += tl.sum(chosen, 0)
        equals += tl.sum(equal, 0)


AOT_CASES = (
    AotCase(
        "top_k/fp32",
        _select,
        {"scores": "*fp32", "places": "*i32", "stride": "i32", "size": "i32", "k": "i32"},
        {"TILE": TILE},
        num_warps=8,
        aligned=("scores", "places"),
        mma=False,
    ),
)
