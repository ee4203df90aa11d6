"""Attention of prompt chunks: consecutive rows of each sequence over its paged KV.

One CTA takes ROWS rows of one query head and walks through all that they see. Splits and their
merge are those of decode.py, so a row gets what it would get alone: the chunk does not show.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import (
    Attended,
    AttentionShape,
    PagedKv,
    Skipping,
    Tiles,
    check_queries,
    constants,
    new_results,
    skip_arguments,
    tiles_for,
)
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import (
    NOTHING,
    add_sink,
    blocks_of,
    finish,
    fold,
    load_keys,
    load_values,
    logits,
    merge,
)
from triptych_kernels.triton.common import LOG2E, NO_FUSION
from triptych_kernels.triton.skipping import (
    certificate,
    largest,
    left_out,
    log_thresholds,
    merge_omitted,
)

WARPS = 8
STAGES = 3  # blocks' numbers are fetched one ahead of keys and values


@triton.jit
def _see(s, columns, high, positions, window, WINDOWED: tl.constexpr):
    """Logits, −inf where a row does not see a column."""
    seen = (columns[None, :] <= positions[:, None]) & (columns < high)[None, :]
    if WINDOWED:
        seen = seen & (columns[None, :] > positions[:, None] - window)
    return tl.where(seen, s, NOTHING)


@triton.jit
def prefill_kernel(
    q,
    keys,
    values,
    tables,
    lengths,
    row_starts,
    out,
    lse,
    sinks,
    thresholds,
    budgets,
    record,
    eps,
    counts,
    q_row,
    q_head,
    k_block,
    k_token,
    k_head,
    v_block,
    v_token,
    v_head,
    table_row,
    record_tiles,
    scale,
    cap,
    window,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    SKIP: tl.constexpr,
    SCALED: tl.constexpr,
    RECORD: tl.constexpr,
    STAGES: tl.constexpr,
):
    head, seq = tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    first = tl.load(row_starts + seq)
    num_rows = tl.load(row_starts + seq + 1) - first
    at = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS  # the last rows see most: they begin
    if at >= num_rows:
        return
    length = tl.load(lengths + seq)
    rows = at + tl.arange(0, ROWS)
    real = rows < num_rows
    positions = length - num_rows + tl.minimum(rows, num_rows - 1)
    low_position = length - num_rows + at
    high = length - num_rows + tl.minimum(at + ROWS, num_rows)
    low = 0
    if WINDOWED:
        low = tl.maximum(0, low_position - window + 1)
    table = tables + seq * table_row
    keys += (head // GROUP) * k_head
    values += (head // GROUP) * v_head

    d = tl.arange(0, WIDTH)
    places = (first + rows).to(tl.int64)
    queries = tl.load(
        q + places[:, None] * q_row + head * q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < D),
        other=0.0,
    )

    if SKIP:
        log_thr = log_thresholds(thresholds, seq, positions, window, WINDOWED, SCALED)
        first_tile = positions * 0
        if WINDOWED:
            first_tile = tl.maximum(0, positions - window + 1) // TILE
        own_tile = positions // TILE
        num_splits = own_tile * TILE // SPLIT + 1 - first_tile * TILE // SPLIT
        budget = tl.load(budgets + seq) / num_splits.to(tl.float32)
        # The largest logit of the tiles that a row never leaves out.
        seed = tl.full([ROWS], NOTHING, tl.float32)
        tile = low // TILE
        last_first = 0
        if WINDOWED:
            last_first = tl.maximum(0, high - window) // TILE
        while tile * TILE < high:
            columns = tile * TILE + tl.arange(0, TILE)
            exist = columns < high
            blocks = blocks_of(table, columns, exist, PAGE)
            k = load_keys(keys, blocks, columns % PAGE, k_block, k_token, exist, D, WIDTH)
            s = logits(queries, k, scale, cap, CAPPED)
            s = _see(s, columns, high, positions, window, WINDOWED)
            kept_tile = (tile == first_tile) | (tile == own_tile)
            seed = tl.maximum(seed, tl.where(kept_tile, largest(s), NOTHING))
            tile += 1
            if (tile > last_first) & (tile * TILE < low_position):
                tile = low_position // TILE
        all_omitted = tl.zeros([ROWS], tl.float32)
        all_unit = tl.full([ROWS], NOTHING, tl.float32)
        visited, unweighed = 0, 0

    all_best = tl.full([ROWS], NOTHING, tl.float32)
    all_total = tl.zeros([ROWS], tl.float32)
    all_out = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in range(low // SPLIT, tl.cdiv(high, SPLIT)):
        best = tl.full([ROWS], NOTHING, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        if SKIP:
            omitted = tl.zeros([ROWS], tl.float32)
            unit = tl.full([ROWS], NOTHING, tl.float32)
        begin = tl.maximum(split * SPLIT, low // TILE * TILE)
        end = tl.minimum((split + 1) * SPLIT, high)
        # With a number of its own, a loop pipelines what is used in a branch, too.
        for start in tl.range(begin, end, TILE, num_stages=STAGES):
            columns = start + tl.arange(0, TILE)
            exist = columns < high
            blocks = blocks_of(table, columns, exist, PAGE)
            k = load_keys(keys, blocks, columns % PAGE, k_block, k_token, exist, D, WIDTH)
            # Above the branch: a load inside one is not pipelined (triton-lang/triton#11013).
            v = load_values(values, blocks, columns % PAGE, v_block, v_token, exist, D, WIDTH)
            s = logits(queries, k, scale, cap, CAPPED)
            s = _see(s, columns, high, positions, window, WINDOWED)
            if SKIP:
                top = largest(s)
                tile = start // TILE
                kept_tile = (tile == first_tile) | (tile == own_tile)
                gone, omitted, unit = left_out(
                    top, best, total, seed, omitted, unit, log_thr, budget, kept_tile, TILE
                )
                if RECORD:
                    row = places * heads + head
                    tl.store(record + row * record_tiles + tile, gone.to(tl.uint8), mask=real)
                needed = real & ~gone & (top != NOTHING)
                visited += 1
                if tl.max(needed.to(tl.int32), 0) > 0:
                    s = tl.where(gone[:, None], NOTHING, s)
                    best, total, acc = fold(best, total, acc, s, v)
                else:
                    unweighed += 1
            else:
                best, total, acc = fold(best, total, acc, s, v)
        all_best, all_total, all_out = merge(all_best, all_total, all_out, best, total, acc)
        if SKIP:
            all_omitted, all_unit = merge_omitted(all_omitted, all_unit, omitted, unit)

    if SINKS:
        sink = tl.load(sinks + head) * LOG2E
        all_best, all_total, all_out = add_sink(all_best, all_total, all_out, sink)
    result, row_lse = finish(all_best, all_total, all_out)
    tl.store(
        out + (places[:, None] * heads + head) * D + d[None, :],
        result.to(out.dtype.element_ty),
        mask=real[:, None] & (d[None, :] < D),
    )
    tl.store(lse + places * heads + head, row_lse, mask=real)
    if SKIP:
        row_eps = certificate(all_omitted, all_unit, row_lse)
        tl.store(eps + places * heads + head, row_eps, mask=real)
        tl.atomic_add(counts + (seq * heads + head) * 2, visited)
        tl.atomic_add(counts + (seq * heads + head) * 2 + 1, unweighed)


def paged_prefill(
    q: Tensor,
    kv: PagedKv,
    row_starts: Tensor,
    shape: AttentionShape,
    *,
    max_rows: int,
    skipping: Skipping | None = None,
) -> Attended:
    """Causal attention of chunks. q [T, Hq, D]: sequence b's rows are row_starts[b] to
    row_starts[b + 1] (int32 [B + 1]), the last ones of its `lengths[b]` tokens. max_rows: of one
    sequence, or more.
    """
    group = check_queries(q, kv)
    if kv.per_head:
        raise ValueError("prefill reads one table for all KV heads: give tables [B, P]")
    _, heads, dim = q.shape
    batch = len(kv.lengths)
    tiles = tiles_for(q.dtype, dim)
    rows = rows_for(tiles)
    results = new_results(q, kv, skipping, heads)
    record = results.tiles_left_out
    prefill_kernel[(triton.cdiv(max_rows, rows), heads, batch)](
        q,
        kv.keys,
        kv.values,
        kv.tables,
        kv.lengths,
        row_starts,
        results.out,
        results.lse2,
        shape.sinks,
        *skip_arguments(skipping, results),
        results.eps,
        results.counts,
        *q.stride()[:2],
        *kv.keys.stride()[:3],
        *kv.values.stride()[:3],
        kv.tables.stride(0),
        0 if record is None else record.shape[2],
        *shape.factors,
        shape.window or 0,
        **constants(kv, shape, skipping, group, tiles),
        ROWS=rows,
        SINKS=shape.sinks is not None,
        num_warps=WARPS,
        STAGES=STAGES,
        **NO_FUSION,
    )
    return results


def rows_for(tiles: Tiles) -> int:
    """Rows of a CTA: with more, the two states of a row do not fit in registers on every GPU."""
    return 32 if tiles.tokens == 32 else 64


_SPILLS = {"fp32": "both halves of every operand are held; float32 is for comparing, not for speed"}
AOT_CASES = tuple(
    attention_case(
        "prefill", prefill_kernel, dtype, dim, rows, WARPS, STAGES, _SPILLS.get(dtype, ""), on=on
    )
    for dtype, dim, rows, on in (
        ("bf16", 128, 64, ()),
        ("bf16", 128, 64, ("SKIP",)),
        ("bf16", 128, 64, ("SKIP", "SCALED")),
        ("bf16", 64, 64, ("WINDOWED", "SINKS")),
        ("bf16", 256, 32, ("CAPPED",)),
        ("bf16", 256, 32, ("SKIP",)),
        ("bf16", 80, 64, ()),
        ("bf16", 64, 64, ("SKIP", "RECORD")),
        ("fp32", 128, 32, ()),
    )
)
