"""A sequence in a KV pool of its own, and what attention over it has to give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.testing.native_kernels import KvPool, Rows, attend
from triptych_kernels.cpu.native import Library


class Prompt:
    """Random keys, values and queries of every position; its blocks stand in no order.

    The pool is empty before `put`. `group`: query heads of a KV head.
    """

    def __init__(
        self,
        library: Library,
        dtype: str,
        head_dim: int,
        group: int,
        block_tokens: int,
        length: int,
        *,
        kv_heads: int = 2,
    ) -> None:
        self.library = library
        layout = KvLayout(1, kv_heads, head_dim, block_tokens, dtype)
        count = layout.blocks_for(length)
        source = torch.Generator().manual_seed(length)
        shape = (length, kv_heads, head_dim)
        self.keys, self.values = torch.randn(2, *shape, generator=source)
        self.queries = torch.randn(length, kv_heads * group, head_dim, generator=source)
        self.pool = KvPool(self.library, layout, count + 3)
        self.blocks = torch.randperm(count + 3, generator=source)[:count].int()

    def put(self, begin: int = 0, end: int | None = None) -> Prompt:
        part = slice(begin, end)
        self.pool.put(self.blocks, begin, self.keys[part], self.values[part])
        return self

    def rows(self, begin: int, end: int) -> Rows:
        return Rows(self.queries[begin:end], begin, self.blocks)

    def attend(self, *jobs: Rows, **how: Any) -> list[Tensor]:
        """`how` as in `native_kernels.attend`."""
        scale = self.pool.layout.head_dim**-0.5
        return attend(self.library, self.pool.cache, jobs, scale=scale, **how)

    def exact(
        self, begin: int, end: int, window: int, softcap: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Rows [begin, end) in float64, of what the cache holds."""
        scores, values = self.scores(begin, end, window, softcap)
        if sinks is not None:
            sink = sinks.double().view(1, -1, 1).expand(end - begin, -1, 1)
            scores = torch.cat([scores, sink], dim=-1)
        return torch.einsum("rhn,nhd->rhd", scores.softmax(-1)[..., :end], values)

    def scores(self, begin: int, end: int, window: int, softcap: float) -> tuple[Tensor, Tensor]:
        """Of rows [begin, end): float64 [R, Hq, end], −∞ where a row sees nothing; and the values
        [end, Hq, D] of what they belong to.
        """
        keys, values = (part.double() for part in self.pool.read(self.blocks, end))
        queries = self.queries[begin:end]
        if self.pool.layout.dtype != "float32":
            queries = queries.bfloat16()
        rows, heads, dim = queries.shape
        queries = queries.double().view(rows, keys.shape[1], -1, dim)
        scores = torch.einsum("rhgd,nhd->rhgn", queries, keys).reshape(rows, heads, -1) * dim**-0.5
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        back = torch.arange(begin, end)[:, None] - torch.arange(end)
        hidden = (back < 0) | (back >= window if window else back < 0)
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        return scores, values.repeat_interleave(heads // keys.shape[1], dim=1)
