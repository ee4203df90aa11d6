"""Attention whose queries, keys and values come out of low ranks: MLA (DeepSeek-V2, arXiv
2405.04434, section 2.1).

What is kept of a row, the latent, is expanded to ordinary heads before it is stored: keys and
values in the pool are those of every head. That is simple, and large: DeepSeek-V3 needs 128 heads ×
192 numbers for a key and as many for a value, where its latent would be 576 numbers. Values are
narrower than keys; zeros stand behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.layers import Norm
from triptych_kernels.packer import LinearLike


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """See Heads. There are H query, key and value heads, D wide."""

    num_heads: int  # H
    rope_dim: int
    down: LinearLike  # [query rank + KV rank + rope_dim, hidden]
    query_up: LinearLike  # [H·D, query rank], without a query rank [H·D, hidden]
    kv_up: LinearLike  # [2·H·D, KV rank]; what the rotary key goes to is zero
    query_norm: Norm | None  # none: queries are made of the rows themselves
    kv_norm: Norm

    def __call__(self, rows: Tensor, /) -> Tensor:
        query, kv, rotary_key = self._compressed(rows)
        queries = self.query_up(rows if self.query_norm is None else self.query_norm(query))
        heads = self.kv_up(self.kv_norm(kv)).view(len(rows), 2, self.num_heads, -1)
        heads[:, 0, :, : self.rope_dim] = rotary_key[:, None]
        return torch.cat([queries, heads.flatten(1)], dim=-1)

    def query_latents(self, rows: Tensor) -> Tensor:
        """What queries are made of, [M, query rank] (normed); there must be a rank."""
        assert self.query_norm is not None
        return self.query_norm(self._compressed(rows)[0])

    def _compressed(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M, query rank], [M, KV rank], [M, rope_dim]."""
        query_rank = 0 if self.query_norm is None else len(self.query_norm.weight)
        sizes = [query_rank, len(self.kv_norm.weight), self.rope_dim]
        query, kv, rotary_key = torch.split(self.down(rows), sizes, dim=-1)
        return query, kv, rotary_key
