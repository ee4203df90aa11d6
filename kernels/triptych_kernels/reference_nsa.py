"""Native sparse attention (NSA, arXiv 2502.11089) over paged KV, in plain torch.

A row attends three times: to the means of all blocks that lie behind it, one key and one value a
block; token by token to the blocks that got most of that attention; and to the latest tokens. What
the three say is weighted by gates that the row brings along.

`reference_sparse` has the same formulas for overlapping blocks, row by row. Here, as in
`paged_attention`, blocks are visited in tiles of fixed size and sums run in position order: a row's
bits depend neither on the chunk that it came in nor on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych_kernels.reference import KV_TILE, QUERY_ROWS, pad_rows, paged_attention
from triptych_kernels.reference_sparse import select_best


def nsa_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    start: int,
    gates: Tensor,
    *,
    block_tokens: int,
    top_k: int,
    window: int,
    scale: float,
) -> Tensor:
    """Consecutive rows of one sequence: q [R, Hq, D], row r at position start + r → same.

    keys, values, blocks: as in `paged_attention`. gates [R, Hq, 3]: of means, of chosen blocks, of
    the window. `block_tokens`: of a block that is averaged or chosen, whatever the pool's blocks
    hold; `top_k` of these are chosen; `window` positions are seen, the row's own included, 0: that
    part is left out.
    """
    end = start + len(q)
    pools = keys, values
    means = [_means(pool, blocks, end // block_tokens, block_tokens) for pool in pools]
    seen = torch.arange(start + 1, end + 1) // block_tokens
    parts = [
        _attend_means(piece, *means, seen=count, scale=scale)
        for piece, count in zip(
            torch.split(q, QUERY_ROWS), torch.split(seen, QUERY_ROWS), strict=True
        )
    ]
    out, shares = (torch.cat(rows) for rows in zip(*parts, strict=True))
    out = out * gates[..., :1]
    chosen = choose_blocks(shares, start, block_tokens, top_k)
    out += _attend_chosen(q, *pools, blocks, start, chosen, scale) * gates[..., 1:2]
    if window:
        near = paged_attention(q, *pools, blocks, start, scale=scale, window=window)
        out += near * gates[..., 2:]
    return out.to(q.dtype)


def choose_blocks(shares: Tensor, start: int, block_tokens: int, top_k: int) -> Tensor:
    """bool [R, Hkv, start + R]: the positions of the `top_k` blocks that a row reads.

    shares float32 [R, Hkv, C]: what attention each complete block got. The first block, the row's
    own and the one before it are always among them; of equal ones the first is taken.
    """
    rows, kv_heads, complete = shares.shape
    end = start + rows
    count = -(-end // block_tokens)
    block, own = torch.arange(count), (torch.arange(start, end) // block_tokens)[:, None, None]
    worth = torch.nn.functional.pad(shares, (0, count - complete))
    worth = worth.masked_fill((block == 0) | (block == own) | (block == own - 1), torch.inf)
    worth = worth.masked_fill(block > own, -torch.inf)
    places = select_best(worth, top_k).long()
    chosen = torch.zeros(rows, kv_heads, count + 1, dtype=torch.bool)  # the last one is nobody's
    chosen.scatter_(-1, torch.where(places < 0, count, places), True)
    return chosen[..., :count].repeat_interleave(block_tokens, -1)[..., :end]


def _means(pool: Tensor, blocks: Tensor, count: int, block_tokens: int) -> Tensor:
    """The first `count` blocks of a sequence, each one's mean: float32 [count, Hkv, D]. Tokens are
    added one after the other: the order of a library's sum depends on the shape.
    """
    size = pool.shape[1]
    position = torch.arange(count * block_tokens).view(count, block_tokens)
    total = torch.zeros(count, *pool.shape[2:])
    for at in position.unbind(1):
        total += pool[blocks[at // size], at % size].float()
    return total / block_tokens


def _attend_means(
    q: Tensor, keys: Tensor, values: Tensor, *, seen: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """q [R, Hq, D], R ≤ QUERY_ROWS, of which row r sees the first seen[r] of keys, values
    [C, Hkv, D] → float32 [R, Hq, D], zeros where it sees none, and what attention each block gets
    from the query heads of a KV head: [R, Hkv, C].
    """
    (rows, heads, dim), (count, kv_heads, _) = q.shape, keys.shape
    padded, group = pad_rows(q), heads // kv_heads
    packed = padded.reshape(-1, kv_heads, group, dim).permute(1, 2, 0, 3).float()
    packed = packed.reshape(kv_heads, 1, -1, dim) * scale  # [Hkv, 1, G·R, D]
    k, v = _in_tiles(keys), _in_tiles(values)  # [Hkv, tiles, KV_TILE, D]
    scores = torch.matmul(packed, k.transpose(2, 3))
    tiles = scores.shape[1]
    block = torch.arange(tiles * KV_TILE).view(tiles, 1, KV_TILE)
    scores.masked_fill_(block >= pad_rows(seen).repeat(group)[:, None], -torch.inf)
    best = scores.amax((1, 3), keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    weights = torch.exp(scores - best)
    total = _in_order(weights.sum(-1, keepdim=True))  # [Hkv, G·R, 1]
    total = torch.where(total == 0.0, 1.0, total)
    out = (_in_order(torch.matmul(weights, v)) / total).view(kv_heads, group, -1, dim)
    shares = (weights / total[:, None]).view(kv_heads, tiles, group, -1, KV_TILE)
    of_heads = _in_order(shares.transpose(1, 2))  # [Hkv, tiles, R, KV_TILE]
    of_rows = of_heads.permute(2, 0, 1, 3).reshape(-1, kv_heads, tiles * KV_TILE)
    out = out.permute(2, 0, 1, 3).reshape(-1, heads, dim)
    return out[:rows], of_rows[:rows, :, :count]


def _in_tiles(means: Tensor) -> Tensor:
    """[C, Hkv, D] → [Hkv, tiles, KV_TILE, D] with zeros behind the last one; at least one tile."""
    count, kv_heads, dim = means.shape
    tiles = max(1, -(-count // KV_TILE))
    full = torch.cat([means, means.new_zeros(tiles * KV_TILE - count, kv_heads, dim)])
    return full.view(tiles, KV_TILE, kv_heads, dim).permute(2, 0, 1, 3).contiguous()


def _in_order(parts: Tensor) -> Tensor:
    """[A, n, …] → [A, …], added one after the other."""
    total = torch.zeros_like(parts[:, 0])
    for part in parts.unbind(1):
        total += part
    return total


def _attend_chosen(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    start: int,
    chosen: Tensor,
    scale: float,
) -> Tensor:
    """Query heads over the positions that their KV head has chosen, bool [R, Hkv, start + R]."""
    kv_heads = keys.shape[2]
    heads = [
        paged_attention(
            queries,
            keys[:, :, head : head + 1],
            values[:, :, head : head + 1],
            blocks,
            start,
            scale=scale,
            chosen=chosen[:, head],
        )
        for head, queries in enumerate(q.chunk(kv_heads, dim=1))
    ]
    return torch.cat(heads, dim=1)
