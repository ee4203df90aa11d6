"""Merging attention over parts of a context, and the cascade made of it.

A state is what attention over some keys returns: out, and lse2, log2 of the sum of 2^logit. Merging
the parts gives what attention over all keys would, up to rounding. An empty part (lse2 −∞) changes
nothing, and one part alone comes out as it went in.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv, tiles_for
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import NOTHING, add_sink, finish, merge
from triptych_kernels.triton.common import LOG2E, NO_FUSION
from triptych_kernels.triton.decode import paged_decode


@triton.jit
def merge_kernel(
    parts,
    part_lse,
    sinks,
    out,
    lse,
    num_parts,
    part_rows,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SINKS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.num_programs(1)
    one = tl.arange(0, 1)
    d = tl.arange(0, WIDTH)[None, :]
    best = tl.full([1], NOTHING, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, WIDTH], tl.float32)
    for part in range(num_parts):
        place = (part * part_rows + row) * heads + head + one
        next_out = tl.load(parts + place[:, None] * D + d, mask=d < D, other=0.0)
        next_best = tl.load(part_lse + place)
        next_total = tl.where(next_best == NOTHING, 0.0, 1.0)
        best, total, acc = merge(best, total, acc, next_best, next_total, next_out.to(tl.float32))
    if SINKS:
        best, total, acc = add_sink(best, total, acc, tl.load(sinks + head + one) * LOG2E)
    result, row_lse = finish(best, total, acc)
    place = row * heads + head + one
    tl.store(out + place[:, None] * D + d, result.to(out.dtype.element_ty), mask=d < D)
    tl.store(lse + place, row_lse)


def merge_states(parts: Tensor, lse2: Tensor, sinks: Tensor | None = None) -> Attended:
    """parts [S, T, Hq, D], lse2 float32 [S, T, Hq] → one state, merged in the order of the parts.
    sinks float32 [Hq]: met once, at the end; the parts must not have met them.
    """
    count, rows, heads, dim = parts.shape
    if lse2.shape != parts.shape[:3] or lse2.dtype != torch.float32:
        raise ValueError(f"lse2 must be float32 {tuple(parts.shape[:3])}")
    parts, lse2 = parts.contiguous(), lse2.contiguous()
    out, lse = parts.new_empty(rows, heads, dim), lse2.new_empty(rows, heads)
    merge_kernel[(rows, heads)](
        parts,
        lse2,
        sinks,
        out,
        lse,
        count,
        rows,
        D=dim,
        WIDTH=tiles_for(parts.dtype, dim).width,
        SINKS=sinks is not None,
        num_warps=1,
        **NO_FUSION,
    )
    return Attended(out, lse)


def cascade_attention(
    q: Tensor,
    prefix: PagedKv,
    suffixes: PagedKv,
    row_starts: Tensor,
    shape: AttentionShape,
    *,
    max_rows: int,
    max_length: int,
    prefix_length: int,
    block_rows: int = 64,
) -> Attended:
    """Attention of sequences that share a prefix, whose keys are read once for all of them.

    prefix: one sequence (B = 1) that all rows see whole. suffixes: what each has behind it, its
    rows included; row_starts and max_… are theirs. Pays where the prefix is most of what is read.
    Other bits than attention over the whole: the prefix is a part of its own, wherever it ends.
    """
    if shape.window is not None:
        raise ValueError("a cascade knows no window: use paged_decode")
    alone = replace(shape, sinks=None)
    everybody = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
    parts = [
        paged_decode(
            q,
            prefix,
            everybody,
            alone,
            max_rows=len(q),
            max_length=prefix_length,
            see_all=True,
            block_rows=block_rows,
        ),
        paged_decode(q, suffixes, row_starts, alone, max_rows=max_rows, max_length=max_length),
    ]
    outs = torch.stack([part.out for part in parts])
    return merge_states(outs, torch.stack([part.lse2 for part in parts]), shape.sinks)


AOT_CASES = (attention_case("merge_states", merge_kernel, "bf16", 128),)
