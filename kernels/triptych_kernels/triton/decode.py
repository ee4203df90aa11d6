"""Attention of few rows over long contexts: decode, verification of drafts, parts of a sequence.

Grid: splits × row tiles of a KV head × sequences. The query heads that share a KV head and the
rows of a sequence are the rows of a tile, so keys and values are read once for all of them. Each
CTA leaves the state of one split, and combine.py merges a row's states in position order. A
CTA whose split its sequence has not got ends at once: how many there are depends on that sequence.

Splits that several sequences share (shared_splits.py) are folded by one launch whose "sequences"
are bundles: rows of all members in one tile. Another launch of the same code folds what each has to
itself, and all states are merged as if nobody had shared anything: the same bits.

Rows of a tree of drafts (tree.py) stand at positions of their own. Behind the last token that all
share, tiles are visited once for each path from the root to a leaf, with the path's keys where they
would lie without the other branches. So a row gets the bits that plain decoding would give it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.attention import (
    SPLIT_TOKENS,
    Attended,
    AttentionShape,
    PagedKv,
    Skipping,
    check_queries,
    constants,
    new_results,
    skip_arguments,
    tiles_for,
)
from triptych_kernels.triton.attention_aot import attention_case
from triptych_kernels.triton.attention_math import (
    NOTHING,
    blocks_of,
    fold,
    load_keys,
    load_values,
    logits,
)
from triptych_kernels.triton.combine import combine_splits
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.shared_splits import SharedSplits
from triptych_kernels.triton.skipping import (
    largest,
    left_out,
    log_thresholds,
)

STAGES = 3  # blocks' numbers are fetched one ahead of keys and values


@triton.jit
def _see(
    s, columns, exist, positions, owners, leaf, window, TREE: tl.constexpr, WINDOWED: tl.constexpr
):
    """Logits, −inf where a row does not see a column. leaf: whose path this is; −1: everybody's."""
    seen = (columns[None, :] <= positions[:, None]) & exist[None, :]
    if WINDOWED:
        seen = seen & (columns[None, :] > positions[:, None] - window)
    if TREE:
        seen = seen & ((owners == leaf) | (leaf < 0))[:, None]
    return tl.where(seen, s, NOTHING)


@triton.jit
def _slots(columns, start, high, path, turn, path_leaf, TREE: tl.constexpr):
    """Where positions of a tile lie in the sequence, and whether they do."""
    if TREE:
        behind = columns - start
        on_path = (behind >= 0) & (behind < path_leaf)
        node = tl.load(path + turn * path_leaf + behind, mask=on_path, other=-1)
        exist = (behind < 0) | (node >= 0)
        return tl.where(behind < 0, columns, tl.where(exist, start + node, 0)), exist
    return columns, columns < high


# What differs from batch to batch is compiled as any number: one code for every batch.
_OF_BATCH = ["table_head", "table_row", "length_head", "position_head"]
_OF_BATCH += ["path_row", "path_leaf", "record_tiles", "total_rows"]


@triton.jit(do_not_specialize=_OF_BATCH)
def split_kernel(
    q,
    keys,
    values,
    tables,
    lengths,
    row_starts,
    splits_of,
    positions_of,
    owners_of,
    paths,
    leaves_of,
    states,
    outs,
    thresholds,
    budgets,
    record,
    counts,
    q_row,
    q_head,
    k_block,
    k_token,
    k_head,
    v_block,
    v_token,
    v_head,
    table_head,
    table_row,
    length_head,
    position_head,
    path_row,
    path_leaf,
    record_tiles,
    total_rows,
    kv_heads,
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
    TREE: tl.constexpr,
    SHARED: tl.constexpr,
    SKIP: tl.constexpr,
    SCALED: tl.constexpr,
    RECORD: tl.constexpr,
    STAGES: tl.constexpr,
):
    split, seq = tl.program_id(0), tl.program_id(2)
    kv_head = tl.program_id(1) % kv_heads
    at = tl.program_id(1) // kv_heads * ROWS  # of the pairs (row, query head of the group)
    first = tl.load(row_starts + seq)
    num_rows = tl.load(row_starts + seq + 1) - first
    if at >= num_rows * GROUP:
        return
    if SHARED:
        begin, end = tl.load(splits_of + 2 * seq), tl.load(splits_of + 2 * seq + 1)
        if (split < begin) | (split >= end):
            return
    pairs = at + tl.arange(0, ROWS)
    real = pairs < num_rows * GROUP
    rows = (first + pairs // GROUP).to(tl.int64)
    heads = kv_head * GROUP + pairs % GROUP
    positions = tl.load(positions_of + kv_head * position_head + rows, mask=real, other=-1)
    high = tl.max(positions, 0) + 1
    low = 0
    if WINDOWED:
        low = tl.maximum(0, tl.min(tl.where(real, positions, high), 0) - window + 1)
    begin_tile = tl.maximum(split * SPLIT, low) // TILE
    end_tile = tl.cdiv(tl.minimum((split + 1) * SPLIT, high), TILE)
    if begin_tile >= end_tile:
        return
    table = tables + kv_head * table_head + seq * table_row
    keys += kv_head * k_head
    values += kv_head * v_head
    start, leaves, path, shared_tile, owners = 0, 1, paths, end_tile, positions
    if TREE:
        start = tl.load(lengths + kv_head * length_head + seq) - num_rows
        leaves = tl.load(leaves_of + seq)
        path = paths + seq * path_row
        shared_tile = start // TILE  # the first one that is not the same for all
        owners = tl.load(owners_of + rows, mask=real, other=-2)

    d = tl.arange(0, WIDTH)
    queries = tl.load(
        q + rows[:, None] * q_row + heads[:, None] * q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < D),
        other=0.0,
    )

    if SKIP:
        log_thr = log_thresholds(thresholds, seq, positions, window, WINDOWED, SCALED)
        own_tile = positions // TILE
        first_tile = positions * 0
        if WINDOWED:
            first_tile = tl.maximum(0, positions - window + 1) // TILE
        num_splits = tl.maximum(1, own_tile * TILE // SPLIT + 1 - first_tile * TILE // SPLIT)
        budget = tl.load(budgets + seq) / num_splits.to(tl.float32)
        # The largest logit of the tiles that a row never leaves out.
        seed = tl.full([ROWS], NOTHING, tl.float32)
        first_low, first_high = low // TILE, tl.max(tl.where(real, first_tile, 0), 0)
        own_low = tl.min(tl.where(real, own_tile, high), 0)
        num_first = first_high - first_low + 1
        for number in range(num_first + (high - 1) // TILE - own_low + 1):
            tile = tl.where(number < num_first, first_low + number, own_low + number - num_first)
            kept_tile = (tile == first_tile) | (tile == own_tile)
            columns = tile * TILE + tl.arange(0, TILE)
            for turn in range(tl.where(tile < shared_tile, 1, leaves)):
                leaf = tl.where(tile < shared_tile, -1, turn) if TREE else -1
                slots, exist = _slots(columns, start, high, path, turn, path_leaf, TREE)
                blocks = blocks_of(table, slots, exist, PAGE)
                k = load_keys(keys, blocks, slots % PAGE, k_block, k_token, exist, D, WIDTH)
                s = logits(queries, k, scale, cap, CAPPED)
                s = _see(s, columns, exist, positions, owners, leaf, window, TREE, WINDOWED)
                seed = tl.maximum(seed, tl.where(kept_tile, largest(s), NOTHING))
        unweighed = 0

    best = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    omitted = tl.zeros([ROWS], tl.float32)
    unit = tl.full([ROWS], NOTHING, tl.float32)
    shared = end_tile - begin_tile
    visits = shared
    if TREE:
        shared = tl.maximum(0, tl.minimum(shared_tile, end_tile) - begin_tile)
        visits = shared + (end_tile - begin_tile - shared) * leaves
    for visit in tl.range(0, visits, num_stages=STAGES):
        tile, turn, leaf = begin_tile + visit, 0, -1
        if TREE:
            behind = tl.maximum(0, visit - shared)
            tile = tl.where(visit < shared, tile, begin_tile + shared + behind // leaves)
            turn = behind % leaves
            leaf = tl.where(visit < shared, -1, turn)
        columns = tile * TILE + tl.arange(0, TILE)
        slots, exist = _slots(columns, start, high, path, turn, path_leaf, TREE)
        blocks = blocks_of(table, slots, exist, PAGE)
        k = load_keys(keys, blocks, slots % PAGE, k_block, k_token, exist, D, WIDTH)
        s = logits(queries, k, scale, cap, CAPPED)
        s = _see(s, columns, exist, positions, owners, leaf, window, TREE, WINDOWED)
        if SKIP:
            top = largest(s)
            kept_tile = (tile == first_tile) | (tile == own_tile)
            gone, omitted, unit = left_out(
                top, best, total, seed, omitted, unit, log_thr, budget, kept_tile, TILE
            )
            if RECORD:
                place = (rows * kv_heads * GROUP + heads) * record_tiles + tile
                tl.store(record + place, gone.to(tl.uint8), mask=real & (top != NOTHING))
            needed = real & ~gone & (top != NOTHING)
            # Values inside the branch: few rows wait for memory, and these bytes need not come.
            if tl.max(needed.to(tl.int32), 0) > 0:
                v = load_values(values, blocks, slots % PAGE, v_block, v_token, exist, D, WIDTH)
                s = tl.where(gone[:, None], NOTHING, s)
                best, total, out = fold(best, total, out, s, v)
            else:
                unweighed += 1
        else:
            v = load_values(values, blocks, slots % PAGE, v_block, v_token, exist, D, WIDTH)
            best, total, out = fold(best, total, out, s, v)

    place = (split.to(tl.int64) * total_rows + rows) * (kv_heads * GROUP) + heads
    tl.store(states + place * 4, best, mask=real)
    tl.store(states + place * 4 + 1, total, mask=real)
    tl.store(outs + place[:, None] * D + d[None, :], out, mask=real[:, None] & (d[None, :] < D))
    if SKIP:
        tl.store(states + place * 4 + 2, omitted, mask=real)
        tl.store(states + place * 4 + 3, unit, mask=real)
        tl.atomic_add(counts + (seq * kv_heads + kv_head) * 2, visits)
        tl.atomic_add(counts + (seq * kv_heads + kv_head) * 2 + 1, unweighed)


@dataclass(frozen=True, slots=True)
class Paths:
    """Trees of drafts, as paths from the root to each leaf; see tree.py, which makes them."""

    depths: Tensor  # int32 [T]: of a row in its tree, from 0 on
    owners: Tensor  # int32 [T]: the first leaf whose path holds the row
    nodes: Tensor  # int32 [B, leaves, depth]: rows of a path in its tree; −1 behind its end
    leaves: Tensor  # int32 [B]


def paged_decode(
    q: Tensor,
    kv: PagedKv,
    row_starts: Tensor,
    shape: AttentionShape,
    *,
    max_rows: int,
    max_length: int,
    paths: Paths | None = None,
    skipping: Skipping | None = None,
    shared: SharedSplits | None = None,
    block_rows: int = 16,
) -> Attended:
    """Attention of a few rows of each sequence. q [T, Hq, D]; row_starts int32 [B + 1].

    The rows are the last ones of their sequence's tokens, one behind the other or, with `paths`, a
    tree. max_rows and max_length: of one sequence, or more; they show in no bit. block_rows, 16, 32
    or 64: rows × query heads of a KV head that a CTA takes. Sums of products may be rounded
    otherwise for each, so whoever wants decode and verification to give the same bits gives both
    the same. shared: what is read once for several sequences. Shows in no bit; but give it always
    or never, without bundles where there are none, for it is another compilation than None.
    """
    group = check_queries(q, kv)
    rows, heads, dim = q.shape
    if kv.per_head and shape.window is not None:
        raise ValueError("a window needs true positions: give one table for all KV heads")
    if shared is not None and (kv.per_head or shape.window is not None or skipping is not None):
        raise ValueError("shared: neither tables per KV head, nor windows, nor skipping")
    tiles = tiles_for(q.dtype, dim)
    results = new_results(q, kv, skipping, kv.kv_heads)
    positions = _positions(kv, row_starts, rows, paths)
    splits = max(1, triton.cdiv(max_length, SPLIT_TOKENS))
    states = torch.empty(splits, rows, heads, 4, dtype=torch.float32, device=q.device)
    outs = torch.empty(splits, rows, heads, dim, dtype=torch.float32, device=q.device)
    position_head = positions.stride(0) if kv.per_head else 0
    tree = (None,) * 3 if paths is None else (paths.owners, paths.nodes, paths.leaves)
    thresholds, budgets, record = skip_arguments(skipping, results)
    of = constants(kv, shape, skipping, group, tiles)
    launches = [_Launch(kv, row_starts, None if shared is None else shared.own, max_rows, splits)]
    if shared is not None and len(shared.lengths):
        together = replace(kv, tables=shared.tables, lengths=shared.lengths)
        launches.append(
            _Launch(together, shared.row_starts, shared.splits, shared.max_rows, shared.max_splits)
        )
    for of_kv, starts, splits_of, most_rows, most_splits in launches:
        row_tiles = triton.cdiv(most_rows * group, block_rows)
        split_kernel[(most_splits, row_tiles * kv.kv_heads, of_kv.lengths.shape[-1])](
            q,
            kv.keys,
            kv.values,
            of_kv.tables,
            of_kv.lengths,
            starts,
            splits_of,
            positions,
            *tree,
            states,
            outs,
            thresholds,
            budgets,
            record,
            results.counts,
            *q.stride()[:2],
            *kv.keys.stride()[:3],
            *kv.values.stride()[:3],
            of_kv.head_stride(of_kv.tables),
            of_kv.batch_stride(of_kv.tables),
            of_kv.head_stride(of_kv.lengths),
            position_head,
            0 if paths is None else paths.nodes.stride(0),
            0 if paths is None else paths.nodes.stride(1),
            0 if record is None else record.shape[2],
            rows,
            kv.kv_heads,
            *shape.factors,
            shape.window or 0,
            **of,
            ROWS=block_rows,
            TREE=paths is not None,
            SHARED=shared is not None,
            STAGES=STAGES,
            num_warps=warps_for(block_rows),
            **NO_FUSION,
        )
    combine_splits(
        states, outs, positions, results, position_head=position_head, shape=shape, of=of
    )
    return results


class _Launch(NamedTuple):
    """Sequences, or bundles of them, and the splits of each that are folded."""

    kv: PagedKv
    row_starts: Tensor
    splits_of: Tensor | None
    max_rows: int
    max_splits: int


def _positions(kv: PagedKv, row_starts: Tensor, rows: int, paths: Paths | None) -> Tensor:
    """Of each row, int32 [T] or [Hkv, T]; without waiting for the GPU."""
    counts = row_starts.diff()
    sequences = torch.arange(len(counts), device=counts.device)
    sequences = torch.repeat_interleave(sequences, counts, output_size=rows)
    lengths = kv.lengths[..., sequences]
    if paths is None:
        depths = torch.arange(rows, dtype=torch.int32, device=counts.device) - row_starts[sequences]
    else:
        depths = paths.depths
    return (lengths - counts[sequences] + depths).contiguous()


def warps_for(block_rows: int) -> int:
    """Those of prefill, where a tile has as many rows."""
    return 4 if block_rows == 16 else 8


AOT_CASES = tuple(
    attention_case("decode", split_kernel, dtype, dim, rows, warps_for(rows), STAGES, on=on)
    for dtype, dim, rows, on in (
        ("bf16", 128, 16, ()),
        ("bf16", 128, 16, ("SKIP",)),
        ("bf16", 128, 64, ()),
        ("bf16", 128, 64, ("SHARED",)),
        ("bf16", 128, 64, ("TREE", "SHARED")),
        ("bf16", 128, 64, ("SKIP", "SCALED")),
        ("bf16", 128, 64, ("TREE",)),
        ("bf16", 128, 64, ("TREE", "SKIP")),
        ("bf16", 64, 16, ("WINDOWED",)),
        ("bf16", 256, 16, ("CAPPED",)),
        ("bf16", 256, 32, ("SKIP",)),
        ("fp32", 128, 16, ()),
        ("bf16", 64, 16, ("SKIP", "RECORD")),
    )
)
