"""What the splits of each row left, merged in position order: the second half of decode.py."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import Attended, AttentionShape
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import NOTHING, add_sink, finish, merge
from triptych_kernels.triton.common import LOG2E, NO_FUSION
from triptych_kernels.triton.skipping import certificate, merge_omitted

_CONSTANTS = ("GROUP", "D", "WIDTH", "SPLIT", "WINDOWED", "SKIP")


@triton.jit
def combine_kernel(
    states,
    outs,
    positions_of,
    sinks,
    out,
    lse,
    eps,
    position_head,
    total_rows,
    window,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    SKIP: tl.constexpr,
):
    """One row of one head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.num_programs(1)
    position = tl.load(positions_of + head // GROUP * position_head + row)
    first_split = 0
    if WINDOWED:
        first_split = tl.maximum(0, position - window + 1) // SPLIT
    one = tl.arange(0, 1)
    d = tl.arange(0, WIDTH)[None, :]
    best = tl.full([1], NOTHING, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, WIDTH], tl.float32)
    omitted = tl.zeros([1], tl.float32)
    unit = tl.full([1], NOTHING, tl.float32)
    for split in range(first_split, tl.cdiv(position + 1, SPLIT)):
        place = (split * total_rows + row) * heads + head + one
        next_out = tl.load(outs + place[:, None] * D + d, mask=d < D, other=0.0)
        next_best = tl.load(states + place * 4)
        best, total, acc = merge(
            best, total, acc, next_best, tl.load(states + place * 4 + 1), next_out
        )
        if SKIP:
            omitted, unit = merge_omitted(
                omitted, unit, tl.load(states + place * 4 + 2), tl.load(states + place * 4 + 3)
            )
    if SINKS:
        best, total, acc = add_sink(best, total, acc, tl.load(sinks + head + one) * LOG2E)
    result, row_lse = finish(best, total, acc)
    place = row * heads + head + one
    tl.store(out + place[:, None] * D + d, result.to(out.dtype.element_ty), mask=d < D)
    tl.store(lse + place, row_lse)
    if SKIP:
        tl.store(eps + place, certificate(omitted, unit, row_lse))


def combine_splits(
    states: Tensor,
    outs: Tensor,
    positions: Tensor,
    results: Attended,
    *,
    position_head: int,
    shape: AttentionShape,
    of: Mapping[str, object],
) -> None:
    """Fills in results. states float32 [splits, T, Hq, 4]: largest logit, sum, what was left out,
    its unit; outs float32 [splits, T, Hq, D]. Of a row only the splits between the first and the
    last position that it sees are looked at. of: the constants that the splits were made with.
    """
    rows, heads = results.lse2.shape
    combine_kernel[(rows, heads)](
        states,
        outs,
        positions,
        shape.sinks,
        results.out,
        results.lse2,
        results.eps,
        position_head,
        rows,
        shape.window or 0,
        **{name: of[name] for name in _CONSTANTS},
        SINKS=shape.sinks is not None,
        num_warps=1,
        **NO_FUSION,
    )


AOT_CASES = tuple(
    attention_case("combine", combine_kernel, "bf16", 128, on=on) for on in ((), ("SKIP", "SINKS"))
)
