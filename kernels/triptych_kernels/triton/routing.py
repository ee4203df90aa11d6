"""Which experts a row goes to, and with which weights: the twin of the CPU's routing.cpp, equal to
the bit for the same logits.

Bits decide choices: exponentials of different logits may round to one score, and then the lower id
wins. So the exponential is the CPU's polynomial, each step rounded once, sixteen lanes are added up
as the CPU adds them, and sums over a row's experts run in ascending order of their ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.routing import RoutingLike
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION

_LANES = tl.constexpr(16)  # that the CPU adds up side by side
_NOTHING = tl.constexpr(float("-inf"))
_LEAST_SUM = tl.constexpr(1e-20)
_LOG2E = tl.constexpr(float.fromhex("0x1.715476p+0"))
_MAGIC = tl.constexpr(1.5 * 2.0**23)  # added and taken away: a whole number, ties to even
_P0 = tl.constexpr(float.fromhex("0x1.41fbbcp-13"))
_P1 = tl.constexpr(float.fromhex("0x1.5f3e52p-10"))
_P2 = tl.constexpr(float.fromhex("0x1.3b2d4cp-7"))
_P3 = tl.constexpr(float.fromhex("0x1.c6aee8p-5"))
_P4 = tl.constexpr(float.fromhex("0x1.ebfbdcp-3"))
_P5 = tl.constexpr(float.fromhex("0x1.62e430p-1"))


def can_route(routing: RoutingLike) -> bool:
    """Groups and sigmoids are DeepSeek's, whose attention these kernels do not run either."""
    return routing.groups == 1 and routing.scoring != "sigmoid"


def route_rows(logits: Tensor, routing: RoutingLike) -> tuple[Tensor, Tensor]:
    """See `triptych_kernels.route`: logits float32 [M, E] → ids int32 and weights float32 [M, k].
    A NaN is worth least.
    """
    rows, experts = logits.shape
    assert can_route(routing) and experts == routing.num_experts and logits.is_contiguous()
    ids = torch.empty(rows, routing.top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(rows, routing.top_k, dtype=torch.float32, device=logits.device)
    _route[(rows,)](
        logits,
        ids,
        weights,
        routing.scale,
        EXPERTS=experts,
        CHOSEN=routing.top_k,
        WIDTH=max(_LANES.value, triton.next_power_of_2(experts)),
        OF_CHOSEN=routing.scoring == "softmax_of_chosen",
        RENORMALISE=routing.renormalise,
        num_warps=1,
        **NO_FUSION,
    )
    return ids, weights


@triton.jit
def _constant(value: tl.constexpr, x):
    return tl.full(x.shape, value, tl.float32)


@triton.jit
def _exp(x):
    """e^x of float32 [n]; the steps of `exp` in simd.h."""
    x = x * _LOG2E
    inside = tl.minimum(tl.maximum(x, -126.0), 127.0)
    n = (inside + _MAGIC) - _MAGIC
    f = inside - n
    p = tl.fma(_constant(_P0, x), f, _constant(_P1, x))
    p = tl.fma(p, f, _constant(_P2, x))
    p = tl.fma(p, f, _constant(_P3, x))
    p = tl.fma(p, f, _constant(_P4, x))
    p = tl.fma(p, f, _constant(_P5, x))
    p = tl.fma(p, f, _constant(1.0, x))
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -126.0, 0.0, p * power)


@triton.jit
def _sum_lanes(x):
    """[16] → the sum: halves are added, then quarters, then pairs."""
    x = tl.sum(tl.reshape(x, (2, 8)), 0)
    x = tl.sum(tl.reshape(x, (2, 4)), 0)
    x = tl.sum(tl.reshape(x, (2, 2)), 0)
    return tl.sum(x, 0)


@triton.jit
def _divided(x, by):
    """x [n] / a number, rounded as IEEE 754 wants it."""
    return tl.div_rn(x, by + tl.zeros(x.shape, tl.float32))


@triton.jit
def _route(logits, ids, weights, scale, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr,
           WIDTH: tl.constexpr, OF_CHOSEN: tl.constexpr, RENORMALISE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * EXPERTS
    at = tl.arange(0, WIDTH)
    lanes = tl.arange(0, _LANES)
    scores = tl.load(logits + at, mask=at < EXPERTS, other=_NOTHING)
    if not OF_CHOSEN:
        highest = tl.max(scores, 0)
        sums = tl.zeros((_LANES,), tl.float32)
        for first in tl.static_range(0, EXPERTS, _LANES):
            x = tl.load(logits + first + lanes, mask=first + lanes < EXPERTS, other=_NOTHING)
            sums += _exp(x - highest)
        scores = _divided(_exp(scores - highest), _sum_lanes(sums))

    keys = tl.where(scores == scores, scores, _NOTHING)
    free = (at < EXPERTS).to(tl.int32)
    for _ in range(CHOSEN):
        best = tl.max(tl.where(free > 0, keys, _NOTHING), 0)
        chosen = tl.min(tl.where((free > 0) & (keys == best), at, WIDTH), 0)
        free = tl.where(at == chosen, 0, free)
    taken = (free == 0) & (at < EXPERTS)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(ids + row * CHOSEN + place, at, mask=taken)

    if OF_CHOSEN:
        highest = tl.max(tl.where(taken, scores, _NOTHING), 0)
        raised = _exp(scores - highest)
        sums = tl.zeros((_LANES,), tl.float32)
        for first in tl.static_range(0, CHOSEN, _LANES):
            here = taken[None, :] & (place[None, :] == (first + lanes)[:, None])
            sums += tl.sum(tl.where(here, raised[None, :], 0.0), 1)
        scores = _divided(raised, _sum_lanes(sums))
    if RENORMALISE:
        total = tl.full((), _LEAST_SUM, tl.float32)
        for j in range(CHOSEN):
            total += tl.sum(tl.where(taken & (place == j), scores, 0.0), 0)
        scores = _divided(scores, total)
    tl.store(weights + row * CHOSEN + place, scores * scale, mask=taken)


AOT_CASES = tuple(
    AotCase(
        f"route/{name}",
        _route,
        {**dict.fromkeys(("logits", "weights"), "*fp32"), "ids": "*i32", "scale": "fp32"},
        {
            "EXPERTS": experts,
            "CHOSEN": chosen,
            "WIDTH": experts,
            "OF_CHOSEN": of_chosen,
            "RENORMALISE": not of_chosen,
        },
        num_warps=1,
        aligned=("logits", "ids", "weights"),
        mma=False,
    )
    for name, experts, chosen, of_chosen in (
        ("softmax", 128, 8, False),
        ("softmax_of_chosen", 32, 4, True),
    )
)
