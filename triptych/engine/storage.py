"""The KV pool as tensors: views of bytes that somebody else owns (a shared-memory region, or plain
memory).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.models.config import DeltaConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class LayerStates:
    """Per block, as they are behind the last of its tokens that is computed."""

    taken: Tensor  # int32 [num_blocks]: tokens of the sequence that are in the state
    history: Tensor  # float32 [num_blocks, K − 1, C]
    state: Tensor  # float32 [num_blocks, Hv, Dk, Dv]


class KvStorage:
    """Keys and values per layer. The bytes are told in triptych/kv/layout.py."""

    def __init__(self, layout: KvLayout, blocks: NDArray[np.uint8]) -> None:
        """blocks u8 [num_blocks, layout.block_bytes], writable; must outlive this object."""
        assert blocks.shape[1] == layout.block_bytes, "pool and layout disagree"
        self.layout = layout
        self.num_blocks = blocks.shape[0]
        self._layers = torch.from_numpy(blocks.reshape(self.num_blocks, layout.num_layers, -1))

    @property
    def address(self) -> int:
        return self._layers.data_ptr()

    def keys(self, layer: int) -> Tensor:
        """A view [num_blocks, block_tokens, kv_heads, head_dim], as values."""
        heads, tokens, dim = self._shape
        keys = self._half(layer, 0).view(self.num_blocks, heads, tokens, dim)
        return keys.permute(0, 2, 1, 3)

    def values(self, layer: int) -> Tensor:
        heads, tokens, dim = self._shape
        values = self._half(layer, 1).view(self.num_blocks, heads, dim, tokens)
        return values.permute(0, 3, 1, 2)

    def index_keys(self, layer: int) -> Tensor:
        """A view [num_blocks, block_tokens, 1, index_dim]: what tokens are chosen by."""
        layout = self.layout
        keys = self._layers[:, layer, layout.index_offset :].view(_DTYPES[layout.index_dtype])
        return keys.view(self.num_blocks, layout.block_tokens, 1, layout.index_dim)

    def states(self, layer: int, sizes: DeltaConfig) -> LayerStates:
        """Of a layer that keeps a state in place of KV: views."""
        words = self._layers[:, layer, : sizes.state_bytes].view(torch.float32)
        history_end = 1 + (sizes.conv_tokens - 1) * sizes.mixed_dim
        return LayerStates(
            taken=words[:, 0].view(torch.int32),
            history=words[:, 1:history_end].view(self.num_blocks, -1, sizes.mixed_dim),
            state=words[:, history_end:].view(
                self.num_blocks, sizes.value_heads, sizes.key_dim, sizes.value_dim
            ),
        )

    def pools(self, layer: int) -> tuple[Tensor, ...]:
        """All that a layer keeps of a token, each [num_blocks, block_tokens, …]."""
        kept = self.keys(layer), self.values(layer)
        return (*kept, self.index_keys(layer)) if self.layout.index_dim else kept

    def move(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        """Copies what is kept of tokens from slot to slot of a sequence's blocks, in order. Not of
        int8, whose scales lie apart.
        """
        assert self.layout.dtype != "int8", "the native kernels move these"
        size = self.layout.block_tokens
        for layer in range(self.layout.num_layers):
            for kept in self.pools(layer):
                for source, target in moves:
                    to = kept[blocks[target // size], target % size]
                    to.copy_(kept[blocks[source // size], source % size])

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.layout.num_kv_heads, self.layout.block_tokens, self.layout.head_dim

    def _half(self, layer: int, half: int) -> Tensor:
        size = self.layout.half_bytes
        part = self._layers[:, layer, half * size : (half + 1) * size]
        return part.view(_DTYPES[self.layout.dtype])


def plain_storage(layout: KvLayout, num_blocks: int) -> KvStorage:
    """A pool in this process's own memory, for engines that share nothing."""
    return KvStorage(layout, np.zeros((num_blocks, layout.block_bytes), dtype=np.uint8))
