"""The bytes of a block: layer after layer, keys [KV heads, tokens, head dim], then values
transposed, [KV heads, head dim, tokens], then, of int8, a float32 scale per head and token of both,
then, of a model that chooses its tokens, the keys that it chooses by, [tokens, index dim].

A layer that keeps a state in place of KV (linear attention) has its bytes there, float32: how many
of the sequence's tokens are in it, int32, then history and state as they are behind the last token
of the block that is computed. All layers of a block are as large as the largest.

A head's keys lie together because it is read alone, and values lie the way a matrix product reads
them. All layers of a block lie together, so a block is one run of bytes on the wire, and so is any
layer range of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_SCALE_BYTES = 4
# Of the keys that tokens are chosen by: a choice that is off by one takes or leaves a whole token.
_INDEX_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}


@dataclass(frozen=True, slots=True)
class KvLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: str  # "float32" | "bfloat16" | "int8"
    index_dim: int = 0  # of the one key a token that tokens are chosen by; 0: there is none
    state_bytes: int = 0  # of a layer that keeps a state in place of KV; 0: there is none

    @property
    def half_bytes(self) -> int:
        """Keys, or values, of one layer of one block, without scales."""
        return self.block_tokens * self.num_kv_heads * self.head_dim * ITEM_BYTES[self.dtype]

    @property
    def index_dtype(self) -> str:
        return _INDEX_DTYPES[self.dtype]

    @property
    def index_offset(self) -> int:
        """Where the index keys of one layer of one block begin: behind keys, values and scales."""
        scales = self.block_tokens * self.num_kv_heads * _SCALE_BYTES if self.dtype == "int8" else 0
        return 2 * (self.half_bytes + scales)

    @property
    def layer_bytes(self) -> int:
        """One layer of one block."""
        index = self.block_tokens * self.index_dim * ITEM_BYTES[self.index_dtype]
        return max(self.index_offset + index, self.state_bytes)

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def layer_span(self, first: int, end: int) -> tuple[int, int]:
        """(offset, length) in bytes of layers [first, end) inside a block."""
        return first * self.layer_bytes, (end - first) * self.layer_bytes

    def describe(self, *, model: str, weights: str, compute: str = "") -> str:
        """Canonical JSON; two pools may exchange blocks only if theirs are equal to the letter.

        compute: what decides the bits of the KV beside the weights: kernels and weight type.
        """
        fields = {**asdict(self), "model": model, "weights": weights, "compute": compute}
        return json.dumps({**fields, "version": 3}, sort_keys=True, separators=(",", ":"))
