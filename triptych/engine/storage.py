"""The KV pool as tensors: views of bytes that somebody else owns (a shared-memory region, or plain
memory).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.kv.layout import KvLayout

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class KvStorage:
    """Keys and values per layer, each a view [num_blocks, block_tokens, kv_heads, head_dim]."""

    def __init__(self, layout: KvLayout, blocks: NDArray[np.uint8]) -> None:
        """blocks u8 [num_blocks, layout.block_bytes], writable; must outlive this object."""
        assert blocks.shape[1] == layout.block_bytes, "pool and layout disagree"
        self.layout = layout
        self.num_blocks = blocks.shape[0]
        shape = (
            self.num_blocks,
            layout.num_layers,
            2,
            layout.block_tokens,
            layout.num_kv_heads,
            layout.head_dim,
        )
        flat = torch.from_numpy(blocks.reshape(-1)).view(TORCH_DTYPES[layout.dtype])
        self._pool = flat.view(shape)

    def keys(self, layer: int) -> Tensor:
        return self._pool[:, layer, 0]

    def values(self, layer: int) -> Tensor:
        return self._pool[:, layer, 1]


def plain_storage(layout: KvLayout, num_blocks: int) -> KvStorage:
    """A pool in this process's own memory, for engines that share nothing."""
    return KvStorage(layout, np.zeros((num_blocks, layout.block_bytes), dtype=np.uint8))
