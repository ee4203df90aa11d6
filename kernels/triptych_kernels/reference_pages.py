"""Page selection as approximate attention (Quest, arXiv 2406.10774) in plain torch.

A row reads the first page of its context, the two latest ones, its own included, and those whose
keys could be worth most to it: Σ_d max(q[d] · largest[d], q[d] · smallest[d]), over the largest and
smallest number of each channel of a page's keys, is what no q · k of the page exceeds. Pages are
aligned to position 0, whatever the pool's blocks hold; sums run over d in order. So what a row
chooses depends neither on the chunk that it came in nor on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych_kernels.reference_sparse import select_best

RECENT_PAGES = 2


def choose_pages(
    q: Tensor, keys: Tensor, blocks: Tensor, start: int, kept: Sequence[int], page_tokens: int
) -> Tensor:
    """bool [R, Hkv, start + R]: the positions that consecutive rows of a sequence read: kept[r]
    pages, 0: all that they see.

    q [R, Hq, D], row r at position start + r; keys [num_blocks, block_tokens, Hkv, D]; blocks [n]
    int64. The query heads of a KV head choose together: a page is worth what it is worth to the
    keenest of them. Of equal ones the first; a NaN is always chosen.
    """
    rows, end = len(q), start + len(q)
    worths = page_worths(q, keys, blocks, end // page_tokens, page_tokens)
    count = -(-end // page_tokens)
    chosen = torch.zeros(rows, worths.shape[1], count, dtype=torch.bool)
    for row, wanted in enumerate(kept):
        own = (start + row) // page_tokens
        if not wanted:
            chosen[row] = True
            continue
        worth = worths.new_full((worths.shape[1], own + 1), torch.inf)
        ranked = own + 1 - RECENT_PAGES
        least = torch.finfo(torch.float32).min  # −∞ is worth little, but may be chosen
        worth[:, 1:ranked] = worths[row, :, 1:ranked].clamp(min=least)
        chosen[row].scatter_(1, select_best(worth, wanted).long(), True)
    seen = torch.arange(end) <= torch.arange(start, end)[:, None]
    return chosen.repeat_interleave(page_tokens, -1)[..., :end] & seen[:, None]


def page_worths(q: Tensor, keys: Tensor, blocks: Tensor, count: int, page_tokens: int) -> Tensor:
    """float32 [R, Hkv, count] of the first pages of a sequence, to rows q [R, Hq, D]."""
    size, kv_heads = keys.shape[1:3]
    position = torch.arange(count * page_tokens)
    pages = keys[blocks[position // size], position % size].float()
    pages = pages.view(count, page_tokens, kv_heads, -1)
    largest, smallest = pages.amax(1), pages.amin(1)  # [count, Hkv, D]
    queries = q.float().view(len(q), kv_heads, -1, 1, q.shape[-1])  # [R, Hkv, G, 1, D]
    total = q.new_zeros(len(q), kv_heads, queries.shape[2], count, dtype=torch.float32)
    for d in range(q.shape[-1]):  # in order: a library's sum depends on the shape
        of_pages = torch.maximum(
            queries[..., d] * largest[:, :, d].t()[:, None],
            queries[..., d] * smallest[:, :, d].t()[:, None],
        )
        total += of_pages
    return total.amax(2)
