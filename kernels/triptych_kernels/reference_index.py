"""Which tokens a row attends to, over paged index keys: DeepSeek-V3.2's indexer in plain torch.

`reference_sparse.index_logits` is the same sum over keys in a row. Here keys are visited in tiles
aligned to position 0, and heads are added one after the other: what a row chooses depends neither
on the chunk that it came in nor on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych_kernels.reference import (
    KV_TILE,
    QUERY_ROWS,
    ROWS_AT_ONCE,
    gather_tiles,
    pad_rows,
)
from triptych_kernels.reference_sparse import select_best


def choose_tokens(
    q: Tensor, weights: Tensor, keys: Tensor, blocks: Tensor, start: int, top_k: int
) -> Tensor | None:
    """bool [R, start + R]: the `top_k` positions that are worth most to consecutive rows of one
    sequence, of those up to the row's own. Of equal ones the first. None: all rows see all.

    q [R, J, D], row r at position start + r; weights float32 [R, J]; keys [num_blocks,
    block_tokens, 1, D] (a strided view of one layer of the pool); blocks [n] int64, as in
    `paged_attention`. Position s is worth Σ_j weights[r, j] · ReLU(q[r, j] · keys[s]) to row r.
    """
    end = start + len(q)
    if end <= top_k:
        return None
    worth = torch.full((len(q), end), -torch.inf)
    for first in range(0, len(q), QUERY_ROWS):
        rows = slice(first, first + QUERY_ROWS)
        found = _worth(q[rows].float(), weights[rows], keys, blocks, start + first)
        worth[rows, : found.shape[1]] = found
    worth.clamp_(min=torch.finfo(torch.float32).min)  # −∞ is worth little, but may be chosen
    ahead = torch.arange(end) > torch.arange(start, end)[:, None]
    places = select_best(worth.masked_fill_(ahead, -torch.inf), top_k).long()
    chosen = torch.zeros(len(q), end + 1, dtype=torch.bool)  # the last one is nobody's
    return chosen.scatter_(1, torch.where(places < 0, end, places), True)[:, :end]


def _worth(q: Tensor, weights: Tensor, keys: Tensor, blocks: Tensor, start: int) -> Tensor:
    """float32 [R, start + R], R ≤ QUERY_ROWS; also of positions behind a row."""
    rows, heads, dim = q.shape
    end = start + rows
    padded = pad_rows(q)
    packed = padded.transpose(0, 1).reshape(1, -1, dim)  # [1, heads × padded rows, D]
    of_heads = pad_rows(weights).t()[:, None, :, None]  # [heads, 1, padded rows, 1]
    parts = []
    tiles = -(-end // KV_TILE)
    at_once = max(1, ROWS_AT_ONCE // len(padded))
    for tile in range(0, tiles, at_once):
        count = min(at_once, tiles - tile)
        k = gather_tiles(keys, blocks, tile * KV_TILE, count, end)[0].float()  # [tiles, KV_TILE, D]
        products = torch.matmul(packed, k.transpose(1, 2)).relu_()
        products = products.view(count, heads, len(padded), KV_TILE)
        total = torch.zeros(count, len(padded), KV_TILE)
        for head in range(heads):
            total += products[:, head] * of_heads[head]
        parts.append(total.transpose(0, 1).reshape(len(padded), -1))
    return torch.cat(parts, dim=1)[:rows, :end]
