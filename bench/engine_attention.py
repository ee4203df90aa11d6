"""The attention kernel alone: rows of one sequence over a long context."""

from __future__ import annotations

import time
from statistics import median

import torch

from bench.engine_roofline import Rates, attention_seconds
from triptych.kv.layout import ITEM_BYTES, KvLayout
from triptych.models.config import ModelConfig
from triptych.testing.native_kernels import KvPool, Rows, attend
from triptych_kernels.cpu.native import native

CONTEXT = 32_768
DTYPE = "bfloat16"  # of the KV
_LAYERS = 6  # visited in turn, so that no call finds its keys in a cache
_BLOCK_TOKENS = 32


class LongAttention:
    """Random KV of one sequence in a model's shape. Needs the native kernels."""

    def __init__(self, model: ModelConfig) -> None:
        library = native()
        assert library is not None, "there is nothing to measure without native kernels"
        self._library, self._model = library, model
        layout = KvLayout(_LAYERS, model.num_kv_heads, model.head_dim, _BLOCK_TOKENS, DTYPE)
        count = layout.blocks_for(CONTEXT)
        self._pool = KvPool(library, layout, count)
        # Neighbours in the sequence are no neighbours in memory, as in a pool that was used.
        self._blocks = torch.randperm(count).int()
        for layer in range(_LAYERS):
            keys, values = torch.randn(2, CONTEXT, model.num_kv_heads, model.head_dim)
            self._pool.put(self._blocks, 0, keys, values, layer=layer)

    def seconds(self, rows: int, repeats: int) -> float:
        """Of one call for the last `rows` positions, the median of `repeats` × layers."""
        queries = torch.randn(rows, self._model.num_heads, self._model.head_dim)
        job = Rows(queries, CONTEXT - rows, self._blocks)
        scale, found = self._model.attention_scale, []
        for number in range(repeats * _LAYERS):
            began = time.perf_counter()
            attend(self._library, self._pool.cache, [job], scale=scale, layer=number % _LAYERS)
            found.append(time.perf_counter() - began)
        return median(found)

    def least_seconds(self, rows: int, rates: Rates) -> float:
        model = self._model
        return attention_seconds(
            rates,
            kv_bytes=2 * model.num_kv_heads * model.head_dim * ITEM_BYTES[DTYPE],
            flops=4 * model.num_heads * model.head_dim,
            rows=rows,
            context=CONTEXT,
        )
