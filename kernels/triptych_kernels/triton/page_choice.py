"""The pages with the largest scores: exactly as many as asked for, ascending, ties to the first.

The k-th largest score is found bit by bit, by counting how many pages reach what is tried: 33
rounds over scores that lie in the cache, and no sorting.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.attention import PagedKv
from triptych_kernels.triton.common import NO_FUSION

_PAGES_AT_ONCE = 1024  # that are looked at in one go


@triton.jit
def _key(scores, pages, count, sinks, recent):
    """Numbers in the order of scores, from 1 on; 2³² of pages that must be read, 0 of none."""
    exist = pages < count
    s = tl.load(scores + pages, mask=exist, other=0.0)
    s = tl.where(s != s, float("inf"), s)
    bits = s.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648
    key = tl.where((pages < sinks) | (pages >= count - recent), 4294967296, key)
    return tl.where(exist, key, 0)


@triton.jit
def select_kernel(
    scores,
    tables,
    lengths,
    wanted,
    chosen,
    chosen_lengths,
    table_row,
    num_pages,
    width,
    sinks,
    recent,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
):
    """The pages with the largest scores of one KV head of one sequence, ascending."""
    kv_head, seq = tl.program_id(0), tl.program_id(1)
    row = (kv_head * tl.num_programs(1) + seq).to(tl.int64)
    scores += row * num_pages
    length = tl.load(lengths + seq)
    count = tl.cdiv(length, PAGE)
    k = tl.maximum(tl.load(wanted + seq), sinks + recent)
    k = tl.minimum(tl.minimum(k, width), count)
    # The largest key that at least k pages reach, bit by bit.
    least = tl.full([], 0, tl.int64)
    for bit in range(33):
        tried = least + (tl.full([], 1, tl.int64) << (32 - bit))
        reached = 0
        for at in range(0, count, PAGES):
            key = _key(scores, at + tl.arange(0, PAGES), count, sinks, recent)
            reached += tl.sum((key >= tried).to(tl.int32), 0)
        least = tl.where(reached >= k, tried, least)
    above = 0
    for at in range(0, count, PAGES):
        key = _key(scores, at + tl.arange(0, PAGES), count, sinks, recent)
        above += tl.sum((key > least).to(tl.int32), 0)
    ties, taken = k - above, 0  # of equal ones the first
    for at in range(0, count, PAGES):
        pages = at + tl.arange(0, PAGES)
        key = _key(scores, pages, count, sinks, recent)
        tie = ((key == least) & (pages < count)).to(tl.int32)
        take = (key > least) | ((tie != 0) & (tl.cumsum(tie, 0) <= ties))
        place = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        block = tl.load(tables + seq * table_row + pages, mask=take, other=0)
        tl.store(chosen + row * width + place, block, mask=take)
        ties -= tl.sum(tie, 0)
        taken += tl.sum(take.to(tl.int32), 0)
    behind = count * PAGE - length  # free in the last page, which is always chosen
    tl.store(chosen_lengths + row, tl.maximum(taken * PAGE - behind, 0))


def select_pages(
    scores: Tensor, kv: PagedKv, wanted: Tensor, *, width: int, sinks: int = 1, recent: int = 1
) -> tuple[Tensor, Tensor]:
    """The best pages of each KV head: tables int32 [Hkv, B, width] and lengths int32 [Hkv, B] that
    `paged_decode` reads instead of the whole.

    scores [Hkv, B, P]; wanted int32 [B], at most `width`. The first `sinks` and the last `recent`
    pages are among them, at least one recent: it is not full. Ties go to the first; NaN is the
    largest score, so whoever must see it does.
    """
    if kv.per_head:
        raise ValueError("pages are chosen from one table for all KV heads: give tables [B, P]")
    if recent < 1 or sinks < 0 or sinks + recent > width:
        raise ValueError(
            f"sinks {sinks} and recent {recent}: at least one recent, and {width} in all at most"
        )
    heads, batch, pages = scores.shape
    chosen = torch.zeros(heads, batch, width, dtype=torch.int32, device=scores.device)
    lengths = torch.empty(heads, batch, dtype=torch.int32, device=scores.device)
    select_kernel[(heads, batch)](
        scores.contiguous(),
        kv.tables,
        kv.lengths,
        wanted,
        chosen,
        lengths,
        kv.tables.stride(0),
        pages,
        width,
        sinks,
        recent,
        PAGE=kv.page,
        PAGES=_PAGES_AT_ONCE,
        **NO_FUSION,
    )
    return chosen, lengths


AOT_CASES = (
    AotCase(
        name="select_pages",
        kernel=select_kernel,
        signature={
            "scores": "*fp32",
            **dict.fromkeys(("tables", "lengths", "wanted", "chosen", "chosen_lengths"), "*i32"),
            **dict.fromkeys(("table_row", "num_pages", "width", "sinks", "recent"), "i32"),
        },
        constexprs={"PAGE": 16, "PAGES": _PAGES_AT_ONCE},
        aligned=("scores", "tables", "lengths", "wanted", "chosen", "chosen_lengths"),
        mma=False,
    ),
)
