"""Choosing pages by bounds of their keys (Quest, arXiv 2406.10774).

A page's score is the largest logit that a key within its bounds could have: Σ max(q·kmin, q·kmax)
over the dimensions. That is max(q, 0)·kmax + min(q, 0)·kmin, two products of matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.attention import PagedKv, check_queries, tiles_for
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import NOTHING
from triptych_kernels.triton.common import NO_FUSION, dot, wide

ROWS, WARPS, PAGES = 16, 4, 64  # pages that a CTA scores
_PAGES_AT_ONCE = 1024  # that are looked at in one go when pages are chosen


@triton.jit
def bounds_kernel(
    keys,
    blocks,
    filled,
    low,
    high,
    k_block,
    k_token,
    k_head,
    b_block,
    b_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Bounds of one block's keys of one head."""
    block = tl.load(blocks + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)
    tokens, d = tl.arange(0, PAGE), tl.arange(0, WIDTH)
    exist = (tokens < tl.load(filled + tl.program_id(0)))[:, None]
    places = block * k_block + head * k_head + tokens[:, None] * k_token + d[None, :]
    k = tl.load(keys + places, mask=exist & (d < D)[None, :], other=0.0).to(tl.float32)
    nan = tl.max((k != k).to(tl.int32), 0) != 0
    least = tl.min(tl.where(exist, k, float("inf")), 0)
    most = tl.max(tl.where(exist, k, NOTHING), 0)
    at = block * b_block + head * b_head + d
    none = float("nan")
    tl.store(low + at, tl.where(nan, none, least).to(low.dtype.element_ty), mask=d < D)
    tl.store(high + at, tl.where(nan, none, most).to(high.dtype.element_ty), mask=d < D)


@triton.jit
def quest_kernel(
    q,
    low,
    high,
    tables,
    lengths,
    scores,
    q_row,
    q_head,
    b_block,
    b_head,
    table_row,
    num_pages,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    PAGES: tl.constexpr,
    LARGEST: tl.constexpr,
):
    kv_head, seq = tl.program_id(1), tl.program_id(2)
    pages = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    exist = pages * PAGE < tl.load(lengths + seq)
    blocks = tl.load(tables + seq * table_row + pages, mask=exist, other=0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    members = tl.arange(0, ROWS)
    real = members < GROUP
    queries = tl.load(
        q + seq * q_row + (kv_head * GROUP + members)[:, None] * q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < D),
        other=0.0,
    )
    places = blocks[None, :] * b_block + kv_head * b_head + d[:, None]
    mask = exist[None, :] & (d[:, None] < D)
    most = tl.load(high + places, mask=mask, other=0.0)
    least = tl.load(low + places, mask=mask, other=0.0)
    up = tl.maximum(wide(queries), 0.0).to(high.dtype.element_ty)
    down = tl.minimum(wide(queries), 0.0).to(high.dtype.element_ty)
    s = dot(up, most) + dot(down, least)
    if LARGEST:
        nan = tl.max((s != s).to(tl.int32), 0) != 0
        s = tl.where(nan, float("nan"), tl.max(tl.where(real[:, None], s, NOTHING), 0))
    else:
        s = tl.sum(tl.where(real[:, None], s, 0.0), 0)
    batch = tl.num_programs(2)
    row = (kv_head * batch + seq).to(tl.int64) * num_pages
    tl.store(scores + row + pages, tl.where(exist, s, NOTHING), mask=pages < num_pages)


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


def page_bounds(keys: Tensor, blocks: Tensor, filled: Tensor, low: Tensor, high: Tensor) -> None:
    """Writes the bounds of blocks [n] int32, of which `filled` [n] int32 tokens count.

    keys [num_blocks, block_tokens, Hkv, D]; low, high [num_blocks, Hkv, D], alike. A NaN in a key
    becomes one in both bounds.
    """
    if low.stride() != high.stride() or low.stride(2) != 1:
        raise ValueError("low and high need the same strides, 1 at the end")
    heads, dim = keys.shape[2:]
    bounds_kernel[(len(blocks), heads)](
        keys,
        blocks,
        filled,
        low,
        high,
        *keys.stride()[:3],
        *low.stride()[:2],
        D=dim,
        WIDTH=tiles_for(keys.dtype, dim).width,
        PAGE=keys.shape[1],
        **NO_FUSION,
    )


def quest_scores(
    q: Tensor, low: Tensor, high: Tensor, kv: PagedKv, *, largest: bool = False
) -> Tensor:
    """float32 [Hkv, B, P], −∞ behind a sequence's end. q [B, Hq, D], one row of each sequence. A
    page's scores are summed over the query heads of a KV head, or the largest one counts.
    """
    group = check_queries(q, kv)
    batch, pages = kv.tables.shape
    if group > ROWS:
        raise ValueError(f"{group} query heads share a KV head: {ROWS} at most")
    scores = torch.empty(kv.kv_heads, batch, pages, dtype=torch.float32, device=q.device)
    quest_kernel[(triton.cdiv(pages, PAGES), kv.kv_heads, batch)](
        q,
        low,
        high,
        kv.tables,
        kv.lengths,
        scores,
        *q.stride()[:2],
        *low.stride()[:2],
        kv.tables.stride(0),
        pages,
        GROUP=group,
        D=kv.head_dim,
        WIDTH=tiles_for(q.dtype, kv.head_dim).width,
        PAGE=kv.page,
        ROWS=ROWS,
        PAGES=PAGES,
        LARGEST=largest,
        num_warps=WARPS,
        **NO_FUSION,
    )
    return scores


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
    attention_case("page_bounds", bounds_kernel, "bf16", 128, warps=4),
    attention_case(
        "quest_scores",
        quest_kernel,
        "bf16",
        128,
        ROWS,
        WARPS,
        own={"PAGES": PAGES, "LARGEST": 0},
    ),
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
