"""Attention that reads a chosen part of the past, in plain torch: what the Triton kernels compute.

* NSA (arXiv 2502.11089): keys and values of overlapping blocks are compressed to one each; a query
  attends to these, and its probabilities there choose which blocks it reads token by token. What a
  compressed block is made by is the model's; here they are given.
* DSA (DeepSeek-V3.2): a small scorer of its own, the indexer, chooses single tokens.

Rows of several sequences stand together. Loops over rows: made to be read, not to be fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NsaShape:
    """Sizes in tokens; the defaults are the paper's."""

    length: int = 32  # of what is compressed into one
    stride: int = 16  # from one compressed block to the next
    selected: int = 64  # of a block that is chosen
    initial: int = 1  # blocks at the beginning that are always chosen
    local: int = 2  # blocks at the end, the query's own included

    def __post_init__(self) -> None:
        assert self.length % self.stride == self.selected % self.stride == 0, "whole strides"

    def visible(self, position: int) -> int:
        """How many compressed blocks end at or before a position."""
        return max(0, (position + 1 - self.length) // self.stride + 1)


def compressed_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    positions: Tensor,
    shape: NsaShape,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D] over compressed keys, values [C, Hkv, D]: → [T, Hq, D] and lse float32 [T, Hq].

    starts int [T]: where in them the sequence of a row begins; positions int [T]. A row that sees
    no block gets zeros, and −∞.
    """
    out = torch.zeros_like(q)
    lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    for t, (start, position) in enumerate(zip(starts.tolist(), positions.tolist(), strict=True)):
        count = shape.visible(position)
        if count:
            k, v = keys[start : start + count], values[start : start + count]
            out[t], lse[t] = _attend(q[t], k, v, scale)
    return out, lse


def block_scores(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    starts: Tensor,
    positions: Tensor,
    shape: NsaShape,
    scale: float,
    num_blocks: int,
) -> Tensor:
    """How much attention each selectable block gets: float32 [T, Hkv, num_blocks].

    A compressed block gives its probability, summed over the query heads of a KV head, to the
    blocks that it covers, once for each stride of tokens that it has in them. +∞: always chosen;
    −∞: behind the query. lse: of `compressed_attention`.
    """
    rows, kv_heads = len(q), keys.shape[1]
    scores = q.new_full((rows, kv_heads, num_blocks), -torch.inf, dtype=torch.float32)
    for t, (start, position) in enumerate(zip(starts.tolist(), positions.tolist(), strict=True)):
        own, count = position // shape.selected, shape.visible(position)
        scores[t, :, : own + 1] = 0.0
        k = keys[start : start + count].float()
        logits = torch.einsum("hgd,chd->hgc", q[t].float().view(kv_heads, -1, q.shape[2]), k)
        shares = torch.exp(logits * scale - lse[t].view(kv_heads, -1, 1)).sum(1)
        for i in range(count):
            for unit in range(i, i + shape.length // shape.stride):
                scores[t, :, unit * shape.stride // shape.selected] += shares[:, i]
        scores[t, :, : min(shape.initial, own + 1)] = torch.inf
        scores[t, :, max(0, own + 1 - shape.local) : own + 1] = torch.inf
    return scores


def select_best(scores: Tensor, k: int) -> Tensor:
    """scores float32 [..., N] → the places int32 [..., k] of the k greatest, ascending, then −1.

    Of equal ones the first; −∞ is never chosen, NaN always.
    """
    scores = torch.where(scores.isnan(), torch.inf, scores)
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    missing = scores.gather(-1, order) == -torch.inf
    order = order.masked_fill(missing, scores.shape[-1]).sort(dim=-1).values
    order = torch.where(order == scores.shape[-1], -1, order)
    return torch.nn.functional.pad(order, (0, k - order.shape[-1]), value=-1).to(torch.int32)


def selected_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    sequences: Tensor,
    positions: Tensor,
    chosen: Tensor,
    block_tokens: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D] over chosen blocks of paged KV → [T, Hq, D] and lse float32 [T, Hq].

    keys, values [pages, page tokens, Hkv, D]; tables int32 [B, P] of pages; sequences int32 [T],
    whose table is a row's; chosen int32 [T, Hkv, S], blocks of `block_tokens` positions, −1: none.
    A row sees nothing behind its position.
    """
    out = torch.zeros_like(q)
    lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    page_tokens, kv_heads = keys.shape[1:3]
    group = q.shape[1] // kv_heads
    for t in range(len(q)):
        for h in range(kv_heads):
            blocks = chosen[t, h][chosen[t, h] >= 0].long()
            at = (blocks[:, None] * block_tokens + torch.arange(block_tokens)).flatten()
            at = at[at <= positions[t]]
            if len(at):
                pages = tables[sequences[t], at // page_tokens].long()
                k, v = (x[pages, at % page_tokens, h : h + 1] for x in (keys, values))
                heads = slice(h * group, (h + 1) * group)
                out[t, heads], lse[t, heads] = _attend(q[t, heads], k, v, scale)
    return out, lse


def index_logits(
    q: Tensor, weights: Tensor, keys: Tensor, starts: Tensor, ends: Tensor, width: int
) -> Tensor:
    """DSA's indexer: Σ_j weights[t, j] · ReLU(q[t, j] · keys[s]), float32 [T, width].

    q [T, J, D]; weights float32 [T, J]; keys [N, D], of which row t sees [starts[t], ends[t]):
    column s is key starts[t] + s, −∞ where there is none.
    """
    logits = q.new_full((len(q), width), -torch.inf, dtype=torch.float32)
    for t, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        products = q[t].float() @ keys[start:end].float().t()
        logits[t, : end - start] = (weights[t, :, None] * products.relu()).sum(0)
    return logits


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [Hq, D]; keys, values [n, Hkv, D] → [Hq, D] of the type of q, and lse float32 [Hq]."""
    group = q.shape[0] // keys.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (keys, values))
    logits = torch.einsum("hd,nhd->hn", q.float(), k) * scale
    lse = logits.logsumexp(-1)
    return torch.einsum("hn,nhd->hd", torch.exp(logits - lse[:, None]), v).to(q.dtype), lse
