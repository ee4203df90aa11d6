"""Attention as it is defined: float64, every position at hand. And batches to ask about it.

What no token was written to is NaN, blocks lie in any order, and keys and values are views of one
pool with other strides than their shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class PagedBatch:
    """Sequences of `lengths` tokens; `rows` queries of each stand at its end."""

    q: Tensor  # [T, Hq, D]
    keys: Tensor  # [num_blocks, page, Hkv, D]
    values: Tensor
    tables: Tensor  # int32 [B, P]
    lengths: Tensor  # int32 [B]
    row_starts: Tensor  # int32 [B + 1]

    @property
    def max_rows(self) -> int:
        return int(self.row_starts.diff().max())

    @property
    def max_length(self) -> int:
        return int(self.lengths.max())

    def rows_of(self, sequence: int) -> slice:
        return slice(int(self.row_starts[sequence]), int(self.row_starts[sequence + 1]))

    def gathered(self, sequence: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence, float64 [L, Hkv, D]."""
        length, page = int(self.lengths[sequence]), self.keys.shape[1]
        blocks = self.tables[sequence, : -(-length // page)].long()
        keys, values = (
            of[blocks].flatten(0, 1)[:length].double() for of in (self.keys, self.values)
        )
        return keys, values

    def part(self, sequence: int, first: int, end: int) -> PagedBatch:
        """Rows [first, end) of a sequence alone, as they were when no row behind them was there."""
        rows = self.rows_of(sequence)
        length = int(self.lengths[sequence]) - (rows.stop - rows.start) + end
        device = self.q.device
        return PagedBatch(
            self.q[rows][first:end],
            self.keys,
            self.values,
            self.tables[sequence : sequence + 1],
            torch.tensor([length], dtype=torch.int32, device=device),
            torch.tensor([0, end - first], dtype=torch.int32, device=device),
        )


def paged_batch(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    dim: int = 64,
    kv_heads: int = 1,
    group: int = 1,
    lengths: list[int],
    rows: list[int],
    page: int = 16,
    peak: float = 1.0,
) -> PagedBatch:
    """peak: standard deviation of logits, about."""
    random = torch.Generator().manual_seed(sum(lengths) + 7 * dim + group)
    pages = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(pages) + 3, generator=random)
    pool = torch.full((len(order), 2, page, kv_heads, dim), torch.nan, dtype=dtype)
    tables = torch.full((len(lengths), max(max(pages), 1)), 10**6, dtype=torch.int32)  # never read
    for sequence, (length, count) in enumerate(zip(lengths, pages, strict=True)):
        blocks = order[sum(pages[:sequence]) : sum(pages[: sequence + 1])]
        tables[sequence, :count] = blocks.int()
        for position in range(length):
            pool[blocks[position // page], :, position % page] = torch.randn(
                2, kv_heads, dim, generator=random
            ).to(dtype)
    q = torch.randn(sum(rows), kv_heads * group, dim, generator=random) * peak
    pool = pool.to(device)
    starts = [sum(rows[:sequence]) for sequence in range(len(rows) + 1)]
    return PagedBatch(
        q.to(dtype).to(device),
        pool[:, 0],
        pool[:, 1],
        tables.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
    )


def exact_logits(
    batch: PagedBatch,
    sequence: int,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Of a sequence's rows in base 2, float64 [R, Hq, L]. seen: bool [R, L], else causal."""
    keys, _ = batch.gathered(sequence)
    q = batch.q[batch.rows_of(sequence)].double()
    rows, length = len(q), len(keys)
    keys = keys.repeat_interleave(q.shape[1] // max(1, keys.shape[1]), dim=1)
    logits = torch.einsum("rhd,nhd->rhn", q, keys) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if seen is None:
        positions = torch.arange(length - rows, length, device=q.device)[:, None]
        columns = torch.arange(length, device=q.device)
        seen = columns <= positions
        if window is not None:
            seen &= columns > positions - window
    return logits.masked_fill(~seen[:, None], -torch.inf) * math.log2(math.e)


def exact_attention(
    logits: Tensor, values: Tensor, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """logits [R, Hq, L] in base 2, values [L, Hkv, D] → out [R, Hq, D], lse2 [R, Hq]."""
    values = values.repeat_interleave(logits.shape[1] // values.shape[1], dim=1)
    if sinks is not None:
        sink = (sinks.double() * math.log2(math.e))[None, :, None].expand(len(logits), -1, 1)
        logits = torch.cat([logits, sink], dim=2)
    weights = torch.softmax(logits * math.log(2), dim=2)[..., : len(values)]
    lse2 = torch.logsumexp(logits * math.log(2), dim=2) / math.log(2)
    return torch.einsum("rhn,nhd->rhd", weights, values), lse2


DOUBTFUL = 1e-3  # in units of log2; float32 scores are nearer to exact ones


@dataclass(slots=True)
class Left:
    """What one row of one head left out, and what it may have lost by that."""

    tiles: list[int]
    omitted: float  # a bound of the sum of 2^logit
    doubtful: bool = False  # some tile's top lies where rounding decides


def replay_skipping(
    logits: Tensor, position: int, *, threshold: float, budget: float, tile: int, split: int
) -> Left:
    """BLASST's rule, tile after tile, for one row: logits [L] in base 2.

    As told in triton/skipping.py and cpu/src/skipping.h, on whose seeds and splits all agree.
    """
    seen = torch.nonzero(logits > -torch.inf).flatten()
    first, own = int(seen[0]) // tile, position // tile
    tops = [logits[at : at + tile].max().item() for at in range(0, len(logits), tile)]
    seed = max(tops[first], tops[own])
    splits = own * tile // split - first * tile // split + 1
    left = Left([], 0.0)
    for number in range(first * tile // split, own * tile // split + 1):
        best, total, omitted = -math.inf, 0.0, 0.0
        for at in range(
            max(number * split // tile, first), min((number + 1) * split // tile, own + 1)
        ):
            known = max(seed, best)
            loss = tile * 2.0 ** (tops[at] - known)
            weighed = max(1.0, total * 2.0 ** (best - known))
            so_far = omitted * 2.0**-known
            margin = tops[at] - known - math.log2(threshold)
            may = at not in (first, own)
            left.doubtful |= may and abs(margin) < DOUBTFUL
            if may and margin < 0 and so_far + loss <= budget / splits * weighed:
                left.tiles.append(at)
                omitted += loss * 2.0**known
                continue
            here = logits[at * tile : (at + 1) * tile]
            top = max(best, tops[at])
            total = total * 2.0 ** (best - top) + float((2.0 ** (here - top)).sum())
            best = top
        left.omitted += omitted
    return left
