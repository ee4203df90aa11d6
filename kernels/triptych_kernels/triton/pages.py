"""Choosing pages by bounds of their keys (Quest, arXiv 2406.10774).

A page's score is the largest logit that a key within its bounds could have: Σ max(q·kmin, q·kmax)
over the dimensions. That is max(q, 0)·kmax + min(q, 0)·kmin, two products of matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import PagedKv, check_queries, tiles_for
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import NOTHING
from triptych_kernels.triton.common import NO_FUSION, dot, wide

ROWS, WARPS, PAGES = 16, 4, 64  # pages that a CTA scores


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
)
