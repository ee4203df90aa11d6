"""The bytes of a block: [layers, 2 (key, value), block tokens, KV heads, head dim], contiguous.

All layers of a block lie together, so a block is one run of bytes on the wire, and so is any layer
range of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class KvLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: str  # "float32" | "bfloat16"

    @property
    def item_bytes(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.dtype]

    @property
    def layer_bytes(self) -> int:
        """Keys and values of one layer of one block."""
        return 2 * self.block_tokens * self.num_kv_heads * self.head_dim * self.item_bytes

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def layer_span(self, first: int, end: int) -> tuple[int, int]:
        """(offset, length) in bytes of layers [first, end) inside a block."""
        return first * self.layer_bytes, (end - first) * self.layer_bytes

    def describe(self, *, model: str, weights: str) -> str:
        """Canonical JSON; two pools may exchange blocks only if theirs are equal to the letter."""
        fields = {**asdict(self), "model": model, "weights": weights, "version": 1}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))
