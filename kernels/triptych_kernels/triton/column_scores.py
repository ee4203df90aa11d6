"""How much attention each token or page got: what sparse drafts choose their pages by.

The softmax of every row, averaged over a sequence's rows and the query heads of a KV head
(PillarAttn of SparseSpec, arXiv 2512.01278). Attention itself stays as it is: keys are read a
second time, when each row's lse is known, so a column needs nothing of the others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import (
    AttentionShape,
    PagedKv,
    check_queries,
    constants,
    tiles_for,
)
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import NOTHING, blocks_of, load_keys, logits
from triptych_kernels.triton.common import NO_FUSION

ROWS, WARPS = 16, 4


@triton.jit
def column_kernel(
    q,
    keys,
    tables,
    lengths,
    row_starts,
    masks,
    lse,
    scores,
    q_row,
    q_head,
    k_block,
    k_token,
    k_head,
    table_head,
    table_row,
    length_head,
    score_columns,
    scale,
    cap,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    POOL: tl.constexpr,
    CAPPED: tl.constexpr,
    TREE: tl.constexpr,
):
    tile, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    first = tl.load(row_starts + seq)
    num_rows = tl.load(row_starts + seq + 1) - first
    length = tl.load(lengths + kv_head * length_head + seq)
    if tile * TILE >= length:
        return
    start = length - num_rows
    columns = tile * TILE + tl.arange(0, TILE)
    exist = columns < length
    blocks = blocks_of(tables + kv_head * table_head + seq * table_row, columns, exist, PAGE)
    k = load_keys(
        keys + kv_head * k_head, blocks, columns % PAGE, k_block, k_token, exist, D, WIDTH
    )
    d = tl.arange(0, WIDTH)
    shares = tl.zeros([TILE], tl.float32)
    for at in range(0, num_rows * GROUP, ROWS):
        pairs = at + tl.arange(0, ROWS)
        real = pairs < num_rows * GROUP
        rows = (first + pairs // GROUP).to(tl.int64)
        heads = kv_head * GROUP + pairs % GROUP
        queries = tl.load(
            q + rows[:, None] * q_row + heads[:, None] * q_head + d[None, :],
            mask=real[:, None] & (d[None, :] < D),
            other=0.0,
        )
        s = logits(queries, k, scale, cap, CAPPED)
        behind = columns - start
        if TREE:
            mask = tl.load(masks + rows, mask=real, other=0)
            node = tl.minimum(tl.maximum(behind, 0), 63).to(tl.int64)
            seen = (behind < 0)[None, :] | ((mask[:, None] >> node[None, :]) & 1 != 0)
        else:
            seen = behind[None, :] <= (pairs // GROUP)[:, None]
        seen = seen & exist[None, :] & real[:, None]
        row_lse = tl.load(lse + rows * kv_heads * GROUP + heads, mask=real, other=0.0)
        row_lse = tl.where(row_lse == NOTHING, 0.0, row_lse)
        shares += tl.sum(tl.exp2(tl.where(seen, s - row_lse[:, None], NOTHING)), 0)
    shares = shares / (num_rows * GROUP).to(tl.float32)
    pooled = tl.sum(tl.reshape(shares, [TILE // POOL, POOL]), 1)
    places = tile * (TILE // POOL) + tl.arange(0, TILE // POOL)
    row = (seq * kv_heads + kv_head).to(tl.int64) * score_columns
    tl.store(scores + row + places, pooled, mask=places * POOL < length)


def column_scores(
    q: Tensor,
    kv: PagedKv,
    row_starts: Tensor,
    shape: AttentionShape,
    lse2: Tensor,
    *,
    max_length: int,
    pool: int,
    masks: Tensor | None = None,
) -> Tensor:
    """float32 [B, Hkv, columns], zeros behind a sequence's end; a column is `pool` tokens: 1, or a
    page. q [T, Hq, D], lse2 [T, Hq] of the same rows' attention; masks int64 [T] of trees.
    """
    group = check_queries(q, kv)
    tiles = tiles_for(q.dtype, q.shape[2])
    if shape.window is not None:
        raise ValueError("what a layer with a window reads is known: it needs no scores")
    if tiles.tokens % pool:
        raise ValueError(f"pool is {pool}: it must divide {tiles.tokens}")
    batch = kv.lengths.shape[-1]
    columns = -(-max_length // pool)
    scores = torch.zeros(batch, kv.kv_heads, columns, dtype=torch.float32, device=q.device)
    of = constants(kv, shape, None, group, tiles)
    column_kernel[(triton.cdiv(max_length, tiles.tokens), kv.kv_heads, batch)](
        q,
        kv.keys,
        kv.tables,
        kv.lengths,
        row_starts,
        masks,
        lse2,
        scores,
        *q.stride()[:2],
        *kv.keys.stride()[:3],
        kv.head_stride(kv.tables),
        kv.batch_stride(kv.tables),
        kv.head_stride(kv.lengths),
        columns,
        *shape.factors,
        **{name: of[name] for name in ("GROUP", "D", "WIDTH", "PAGE", "TILE", "CAPPED")},
        ROWS=ROWS,
        POOL=pool,
        TREE=masks is not None,
        num_warps=WARPS,
        **NO_FUSION,
    )
    return scores


AOT_CASES = (
    attention_case("page_scores", column_kernel, "bf16", 128, ROWS, WARPS, own={"POOL": 16}),
    attention_case(
        "column_scores", column_kernel, "bf16", 128, ROWS, WARPS, own={"POOL": 1}, on=("TREE",)
    ),
)
